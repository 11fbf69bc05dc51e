//! Names for the parts of a model that compression talks about, independent of any family.

use crate::error::UserError;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// What a linear layer does inside its block. Displays, parses and serialises as its stable name, which reports, recipes
/// and statistics files use: `attn.q`, `mlp.down`, `ssm.in`, `moe.7.up`.
///
/// Which roles a block has is for the block to say: [`Model::block_linears`](super::Model::block_linears).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Role {
    /// Query projection.
    Q,
    /// Key projection.
    K,
    /// Value projection.
    V,
    /// Attention output projection.
    O,
    /// Gate of a gated feed-forward layer.
    Gate,
    /// Up projection, or the first layer of a plain feed-forward block.
    Up,
    /// Down projection, or the second layer of a plain feed-forward block.
    Down,
    /// Input projection of a state-space block.
    SsmIn,
    /// From the convolved input of a state-space block to its time step, B and C.
    SsmX,
    /// From the low-rank time step of a state-space block to every channel's.
    SsmDt,
    /// Output projection of a state-space block.
    SsmOut,
    /// A linear of one of several feed-forward layers that a router chooses from.
    Expert(u16, FfnPart),
}

/// A side of a linear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// That of its outputs.
    Outputs,
    /// That of its inputs.
    Inputs,
}

/// A linear of a feed-forward layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FfnPart {
    /// The gate.
    Gate,
    /// The up projection.
    Up,
    /// The down projection.
    Down,
}

/// The roles that have a name of their own.
const ROLES: [(Role, &str); 11] = [
    (Role::Q, "attn.q"),
    (Role::K, "attn.k"),
    (Role::V, "attn.v"),
    (Role::O, "attn.o"),
    (Role::Gate, "mlp.gate"),
    (Role::Up, "mlp.up"),
    (Role::Down, "mlp.down"),
    (Role::SsmIn, "ssm.in"),
    (Role::SsmX, "ssm.x"),
    (Role::SsmDt, "ssm.dt"),
    (Role::SsmOut, "ssm.out"),
];
const PARTS: [(FfnPart, &str); 3] = [(FfnPart::Gate, "gate"), (FfnPart::Up, "up"), (FfnPart::Down, "down")];

impl Role {
    /// Whether the linear belongs to the attention half of its block.
    pub fn is_attention(self) -> bool {
        matches!(self, Role::Q | Role::K | Role::V | Role::O)
    }

    /// Whether the linear belongs to a state-space block.
    pub fn is_state_space(self) -> bool {
        matches!(self, Role::SsmIn | Role::SsmX | Role::SsmDt | Role::SsmOut)
    }

    /// Whether the linear is compressed only on request: its short side makes it cost little and carry much.
    pub fn is_small(self) -> bool {
        matches!(self, Role::SsmX | Role::SsmDt)
    }

    /// What it is in its feed-forward layer, if it belongs to one, the only one of the block or one of several.
    pub fn ffn_part(self) -> Option<FfnPart> {
        match self {
            Role::Gate => Some(FfnPart::Gate),
            Role::Up => Some(FfnPart::Up),
            Role::Down => Some(FfnPart::Down),
            Role::Expert(_, part) => Some(part),
            _ => None,
        }
    }

    /// The side on which it may be smaller than the base's, together with the linears that it meets there: what leaves v,
    /// gate and up, what enters o and down.
    pub fn inner_side(self) -> Option<Side> {
        match (self, self.ffn_part()) {
            (Role::V, _) | (_, Some(FfnPart::Gate | FfnPart::Up)) => Some(Side::Outputs),
            (Role::O, _) | (_, Some(FfnPart::Down)) => Some(Side::Inputs),
            _ => None,
        }
    }

    /// The expert it belongs to.
    pub fn expert(self) -> Option<u16> {
        match self {
            Role::Expert(expert, _) => Some(expert),
            _ => None,
        }
    }

    /// What it is called inside its layer: `q`, `down`.
    pub fn short_name(self) -> &'static str {
        let name = match self {
            Role::Expert(_, part) => name_of(&PARTS, &part),
            role => name_of(&ROLES, &role),
        };
        name.rsplit('.').next().unwrap_or(name)
    }

    /// The role of another linear of the same feed-forward layer.
    pub fn sibling(self, part: FfnPart) -> Role {
        match (self.expert(), part) {
            (Some(expert), part) => Role::Expert(expert, part),
            (None, FfnPart::Gate) => Role::Gate,
            (None, FfnPart::Up) => Role::Up,
            (None, FfnPart::Down) => Role::Down,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Role::Expert(expert, part) => f.pad(&format!("moe.{expert}.{}", name_of(&PARTS, part))),
            role => f.pad(name_of(&ROLES, role)),
        }
    }
}

impl FromStr for Role {
    type Err = UserError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad =
            || UserError::new(format!("{text:?} names no kind of linear")).hint("attn.q is one, mlp.down another");
        if let Some((expert, part)) = text.strip_prefix("moe.").and_then(|rest| rest.split_once('.')) {
            return Ok(Role::Expert(index(expert).ok_or_else(bad)?, named(&PARTS, part).ok_or_else(bad)?));
        }
        named(&ROLES, text).ok_or_else(bad)
    }
}

/// Where an activation enters one or several linears: q, k and v share one site, gate and up share one. Displays, parses
/// and serialises as its stable name, which statistics files use: `attn_in`, `moe.7.out`.
///
/// Which sites a block has, and in which order activations reach them, is for the block to say:
/// [`Model::block_sites`](super::Model::block_sites).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Site {
    /// Input of q, k and v.
    AttnIn,
    /// Input of the attention output projection.
    AttnOut,
    /// Input of gate and up.
    MlpIn,
    /// Input of down.
    MlpOut,
    /// Input of a state-space block's input projection.
    SsmIn,
    /// What leaves its convolution: input of the projection to time step, B and C.
    SsmConv,
    /// Input of its time step projection.
    SsmDt,
    /// Input of its output projection.
    SsmOut,
    /// Input of an expert's gate and up: the tokens that were routed to it.
    ExpertIn(u16),
    /// Input of an expert's down.
    ExpertOut(u16),
}

/// The sites that have a name of their own.
const SITES: [(Site, &str); 8] = [
    (Site::AttnIn, "attn_in"),
    (Site::AttnOut, "attn_out"),
    (Site::MlpIn, "mlp_in"),
    (Site::MlpOut, "mlp_out"),
    (Site::SsmIn, "ssm_in"),
    (Site::SsmConv, "ssm_conv"),
    (Site::SsmDt, "ssm_dt"),
    (Site::SsmOut, "ssm_out"),
];

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Site::ExpertIn(expert) => f.pad(&format!("moe.{expert}.in")),
            Site::ExpertOut(expert) => f.pad(&format!("moe.{expert}.out")),
            site => f.pad(name_of(&SITES, site)),
        }
    }
}

impl FromStr for Site {
    type Err = UserError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || UserError::new(format!("{text:?} names no site")).hint("attn_in is one, mlp_out another");
        if let Some((expert, end)) = text.strip_prefix("moe.").and_then(|rest| rest.split_once('.')) {
            let expert = index(expert).ok_or_else(bad)?;
            return match end {
                "in" => Ok(Site::ExpertIn(expert)),
                "out" => Ok(Site::ExpertOut(expert)),
                _ => Err(bad()),
            };
        }
        named(&SITES, text).ok_or_else(bad)
    }
}

/// One linear of one block. Displays, parses and serialises as `12.mlp.down`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct LinearId {
    /// Index of the block, from 0.
    pub block: usize,
    /// The linear's role in it.
    pub role: Role,
}

impl fmt::Display for LinearId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}.{}", self.block, self.role))
    }
}

impl FromStr for LinearId {
    type Err = UserError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad =
            || UserError::new(format!("{text:?} names no linear")).hint("the form is BLOCK.ROLE, such as 12.mlp.down");
        let (block, role) = text.split_once('.').ok_or_else(bad)?;
        Ok(Self { block: index(block).ok_or_else(bad)?, role: role.parse().map_err(|_| bad())? })
    }
}

/// A number as Display writes it: the parser of integers would also take a sign.
fn index<T: FromStr>(text: &str) -> Option<T> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

fn named<T: Copy>(table: &[(T, &str)], name: &str) -> Option<T> {
    table.iter().find(|(_, known)| *known == name).map(|&(item, _)| item)
}

fn name_of<T: PartialEq>(table: &[(T, &'static str)], item: &T) -> &'static str {
    table.iter().find(|(known, _)| known == item).map_or("", |&(_, name)| name)
}

/// Serialisation by the stable name.
macro_rules! as_string {
    ($($name:ty),*) => {$(
        impl TryFrom<String> for $name {
            type Error = UserError;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(item: $name) -> Self {
                item.to_string()
            }
        }
    )*};
}

as_string!(Role, Site, LinearId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_nothing_else_is() {
        let roles = ROLES.iter().map(|&(role, _)| role).chain(PARTS.iter().map(|&(part, _)| Role::Expert(7, part)));
        for role in roles {
            assert_eq!(role.to_string().parse::<Role>().unwrap(), role);
            let id = LinearId { block: 12, role };
            assert_eq!(id.to_string().parse::<LinearId>().unwrap(), id);
        }
        for site in SITES.iter().map(|&(site, _)| site).chain([Site::ExpertIn(0), Site::ExpertOut(59)]) {
            assert_eq!(site.to_string().parse::<Site>().unwrap(), site);
        }
        assert_eq!("3.moe.7.gate".parse::<LinearId>().unwrap().role, Role::Expert(7, FfnPart::Gate));
        for bad in ["", "moe.gate", "moe.+7.gate", "moe.7.q", "moe.70000.up", "attn.x", "attn_in"] {
            assert!(bad.parse::<Role>().is_err(), "{bad:?}");
        }
        for bad in ["", "moe.7.mid", "moe..in", "attn.q"] {
            assert!(bad.parse::<Site>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn experts_are_feed_forward_layers_of_their_own() {
        let down = Role::Expert(3, FfnPart::Down);
        assert_eq!(down.sibling(FfnPart::Up), Role::Expert(3, FfnPart::Up));
        assert_eq!(Role::Gate.sibling(FfnPart::Down), Role::Down);
        assert!(down.ffn_part().is_some() && Role::Up.ffn_part().is_some());
        assert!(Role::Q.ffn_part().is_none() && Role::SsmIn.ffn_part().is_none() && !Role::SsmIn.is_attention());
    }
}
