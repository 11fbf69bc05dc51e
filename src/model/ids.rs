//! Names for the parts of a model that compression talks about, independent of any family.

use crate::error::UserError;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// What a linear layer does inside its block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
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
}

impl Role {
    /// The roles in the order in which a block uses them.
    pub const ALL: [Role; 7] = [Role::Q, Role::K, Role::V, Role::O, Role::Gate, Role::Up, Role::Down];

    /// `attn.q`, `mlp.down`: the stable name used in reports, recipes and statistics files.
    pub fn name(self) -> &'static str {
        match self {
            Role::Q => "attn.q",
            Role::K => "attn.k",
            Role::V => "attn.v",
            Role::O => "attn.o",
            Role::Gate => "mlp.gate",
            Role::Up => "mlp.up",
            Role::Down => "mlp.down",
        }
    }

    /// Whether the linear belongs to the attention half of its block.
    pub fn is_attention(self) -> bool {
        matches!(self, Role::Q | Role::K | Role::V | Role::O)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Where an activation enters one or several linears: q, k and v share one site, gate and up share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Site {
    /// Input of q, k and v.
    AttnIn,
    /// Input of the attention output projection.
    AttnOut,
    /// Input of gate and up.
    MlpIn,
    /// Input of down.
    MlpOut,
}

impl Site {
    /// The sites of a block in the order in which activations reach them.
    pub const ALL: [Site; 4] = [Site::AttnIn, Site::AttnOut, Site::MlpIn, Site::MlpOut];

    /// `attn_in`, …: the stable name used in statistics files.
    pub fn name(self) -> &'static str {
        match self {
            Site::AttnIn => "attn_in",
            Site::AttnOut => "attn_out",
            Site::MlpIn => "mlp_in",
            Site::MlpOut => "mlp_out",
        }
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
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
        f.pad(&format!("{}.{}", self.block, self.role.name()))
    }
}

impl FromStr for LinearId {
    type Err = UserError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad =
            || UserError::new(format!("{text:?} names no linear")).hint("the form is BLOCK.ROLE, such as 12.mlp.down");
        let (block, name) = text.split_once('.').ok_or_else(bad)?;
        // The parser of integers would also take a sign, which Display never writes.
        if !block.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(bad());
        }
        let role = Role::ALL.into_iter().find(|role| role.name() == name).ok_or_else(bad)?;
        Ok(Self { block: block.parse().map_err(|_| bad())?, role })
    }
}

impl TryFrom<String> for LinearId {
    type Error = UserError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<LinearId> for String {
    fn from(id: LinearId) -> Self {
        id.to_string()
    }
}

/// How a linear's weight lies in the checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stored {
    /// `<name>.weight` of shape (out, in).
    Plain,
    /// Rows `start..start+out` of the transposed matrix `<fused>.weight` of shape (in, total): GPT-2's Conv1D. The
    /// bias, if any, is the same slice of `<fused>.bias`. A weight that fills its whole matrix has `fused == name`.
    Conv1d { fused: String, start: usize },
}

/// One linear of the model as the dense checkpoint has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinearSpec {
    /// Block and role.
    pub id: LinearId,
    /// Where its input is observed.
    pub site: Site,
    /// Base of its tensor names: `<name>.weight`, or `<name>.factor_a.weight` and `<name>.factor_b.weight`.
    pub name: String,
    /// Output features (m).
    pub out: usize,
    /// Input features (n).
    pub input: usize,
    /// Whether the layer has a bias.
    pub bias: bool,
    /// Where the dense weight lies.
    pub stored: Stored,
}

impl LinearSpec {
    /// Number of weights, m·n. Biases are never counted in `--keep`.
    pub fn params(&self) -> usize {
        self.out * self.input
    }
}
