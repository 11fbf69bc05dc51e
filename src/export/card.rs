//! README.md of an export: where it comes from and what reads it.

use super::{FACTORS_FILE, Form};
use crate::checkpoint::{Section, Source};
use crate::model::Output;
use crate::report::percent;
use anyhow::Result;

/// Front matter of the output's own card that holds for the export too.
const KEPT: [&str; 6] = ["base_model", "license", "license_name", "license_link", "language", "pipeline_tag"];

/// What the card speaks of.
pub(super) struct Facts<'a> {
    pub form: Form,
    /// Stored type of most of it, as people write it: `BF16`.
    pub dtype: String,
    pub family: &'a str,
    pub output: Output,
    pub notes: &'a [String],
}

/// The card, Markdown with YAML front matter.
pub(super) fn card(source: &Source, facts: &Facts) -> Result<String> {
    let section = Section::of(source.config()).unwrap_or_default();
    let own = source.side_file("README.md")?.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let mut out = String::from("---\n");
    out.push_str(&kept(own.as_deref().unwrap_or_default()));
    let library = if facts.form == Form::Factors { "softlm" } else { "transformers" };
    out.push_str(&format!("library_name: {library}\ntags:\n- softlm\n- low-rank\n---\n"));

    let base = code(section.base_model.as_deref().unwrap_or("an unnamed model"));
    let revision = section.base_revision.map(|revision| format!(" at {}", code(&revision))).unwrap_or_default();
    out.push_str(&format!("# {}, {}\n\n", code(source.label()), facts.form.title()));
    out.push_str(&format!(
        "Made by `softlm export --to {}` (softlm {}) from {}, in which softlm's method {} had left {} of the block linears' \
         parameters of {base}{revision}. How good it is, and how that was measured, the card of that output says.\n\n",
        facts.form.name(),
        env!("CARGO_PKG_VERSION"),
        code(source.label()),
        code(&section.method),
        percent(section.keep),
    ));
    out.push_str(&match facts.form {
        Form::Dense => format!(
            "Every product of two factors was computed once in 64 bits and rounded to {}; the shapes are those of the base \
             again, and so is the size. It is a plain checkpoint of the family {}: whatever reads the base reads this.\n",
            facts.dtype, facts.family
        ),
        Form::Plain => format!(
            "The feed-forward layers are as narrow as pruning left them, products of two factors were computed once in 64 \
             bits and rounded to {}. It is a plain, smaller checkpoint of the family {}.\n",
            facts.dtype, facts.family
        ),
        Form::Factors => format!(
            "The raw factors, for programs that multiply them themselves: `{FACTORS_FILE}` says of every linear how it is \
             stored and holds the config of the family {}. `softlm export --schema` prints its JSON Schema. No model \
             library loads this folder.\n",
            facts.family
        ),
    });
    for note in facts.notes {
        out.push_str(&format!("\n{}{}.\n", note[..1].to_uppercase(), &note[1..]));
    }
    if facts.form != Form::Factors {
        let class = class(facts.output);
        out.push_str(&format!(
            "\n```python\nfrom transformers import {class}, AutoTokenizer\n\nmodel = {class}.from_pretrained(\".\")\n\
             tokenizer = AutoTokenizer.from_pretrained(\".\")\n```\n"
        ));
    }
    Ok(out)
}

/// The class of transformers that loads such a model with its head.
fn class(output: Output) -> &'static str {
    match output {
        Output::NextToken => "AutoModelForCausalLM",
        Output::MaskedToken => "AutoModelForMaskedLM",
        Output::Classes(_) => "AutoModelForSequenceClassification",
        Output::States => "AutoModel",
    }
}

/// The keys of a card's front matter that are kept, with everything that belongs to them.
fn kept(card: &str) -> String {
    let mut lines = card.lines();
    if lines.next().map(str::trim_end) != Some("---") {
        return String::new();
    }
    let (mut out, mut keep) = (String::new(), false);
    for line in lines.take_while(|line| line.trim_end() != "---") {
        // A line that is indented or an item of a list goes on with the key before it.
        if !line.starts_with([' ', '-', '#']) {
            keep = line.split_once(':').is_some_and(|(key, _)| KEPT.contains(&key));
        }
        if keep {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

/// Text as a span of code, which nothing in it can leave.
fn code(text: &str) -> String {
    let text: String = text.chars().map(|c| if c.is_control() || c == '`' { ' ' } else { c }).collect();
    format!("`{}`", text.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn licence_and_base_are_kept_and_nothing_else() {
        let card = "---\nbase_model: a/b\nlicense: other\nlicense_name: own\ntags:\n- softlm\nlanguage:\n- en\n- de\n\
                    library_name: softlm\n---\n# x\nlicense: mit\n";
        assert_eq!(kept(card), "base_model: a/b\nlicense: other\nlicense_name: own\nlanguage:\n- en\n- de\n");
        assert_eq!(kept("# no front matter\nlicense: mit\n"), "");
        assert_eq!(kept(""), "");
    }

    #[test]
    fn names_cannot_leave_their_span() {
        assert_eq!(code("a`b\nc"), "`a b c`");
    }
}
