//! Rows with the fields that a data set has on the hub, as the harness's task files make prompts of them.
//!
//! | task | context | choices, each behind a space |
//! |---|---|---|
//! | `piqa` | `Question: {goal}⏎Answer:` | `sol1`, `sol2` |
//! | `arc_easy`, `arc_challenge` | `Question: {question}⏎Answer:` | `choices.text` |
//! | `hellaswag` | `{activity_label}: {ctx_a} {ctx_b}`, capitalised and cleaned | `endings`, cleaned |
//! | `winogrande` | the sentence up to its gap, and an option: one for each | the rest of the sentence |
//! | `openbookqa` | `{question_stem}` | `choices.text` |
//! | `boolq` | `{passage}⏎Question: {question}?⏎Answer:` | no, yes |
//! | `mathqa` | `Question: {Problem}⏎Answer:` | the options, without their letters |
//! | `lambada` | the text without its last word | that word |

use super::{Draft, Row, ZeroShot, chosen, continued};
use anyhow::{Context, Result};
use regex::Regex;
use serde_json::Value;
use std::sync::LazyLock;

/// Headings that the WikiHow part of HellaSwag was taken from.
static BRACKETS: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"\[.*?\]").ok());
/// `a ) 38 , ` up to `e ) none of these`.
static OPTIONS: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"[abcd] \) .*?, |e \) .*?$").ok());

pub(super) fn from_hub_fields(task: ZeroShot, row: &Row) -> Result<Draft> {
    match task {
        ZeroShot::Piqa => {
            let choices = vec![row.text("sol1")?.to_string(), row.text("sol2")?.to_string()];
            Ok(chosen(asked(row.text("goal")?), choices, row.whole("label")?))
        }
        ZeroShot::ArcEasy | ZeroShot::ArcChallenge => lettered(row, asked(row.text("question")?)),
        ZeroShot::OpenBookQa => lettered(row, row.text("question_stem")?.to_string()),
        ZeroShot::HellaSwag => {
            let (label, a, b) = (row.text("activity_label")?, row.text("ctx_a")?, row.text("ctx_b")?);
            let context = cleaned(&format!("{label}: {a} {}", capitalised(b)))?;
            let endings = row.texts("endings")?.iter().map(|ending| cleaned(ending)).collect::<Result<_>>()?;
            Ok(chosen(context, endings, row.whole("label")?))
        }
        ZeroShot::WinoGrande => {
            let sentence = row.text("sentence")?;
            let Some((before, behind)) = sentence.split_once('_') else {
                return row.mistaken("sentence", row.field("sentence")?, "a text with a gap, _");
            };
            let options = [row.text("option1")?, row.text("option2")?].map(|option| format!("{before}{option}"));
            Ok(continued(options.into(), stripped(behind), row.whole("answer")?.saturating_sub(1)))
        }
        ZeroShot::BoolQ => {
            let context = format!("{}\nQuestion: {}?\nAnswer:", row.text("passage")?, row.text("question")?);
            // SuperGLUE has numbers, the set itself truth values.
            let gold = match row.fields.get("answer") {
                Some(Value::Bool(answer)) => i64::from(*answer),
                _ => row.whole("label")?,
            };
            Ok(chosen(context, vec!["no".into(), "yes".into()], gold))
        }
        ZeroShot::MathQa => {
            let options = OPTIONS.as_ref().context("a pattern")?.find_iter(row.text("options")?);
            let choice = |option: regex::Match| option.as_str()[4..].trim_end_matches([' ', ',']).to_string();
            let choices: Vec<String> = options.map(choice).collect();
            let gold = match row.text("correct")?.as_bytes() {
                [letter @ b'a'..=b'e'] => i64::from(letter - b'a'),
                _ => return row.mistaken("correct", row.field("correct")?, "a letter from a to e"),
            };
            Ok(chosen(asked(row.text("Problem")?), choices, gold))
        }
        ZeroShot::Lambada => {
            let text = row.text("text")?;
            let (context, word) = text.rsplit_once(' ').unwrap_or(("", text));
            Ok(continued(vec![context.to_string()], word, 0))
        }
    }
}

fn asked(question: &str) -> String {
    format!("Question: {question}\nAnswer:")
}

/// Choices with labels, one of which is the answer.
fn lettered(row: &Row, context: String) -> Result<Draft> {
    let choices = row.field("choices")?;
    let (texts, labels) = (row.list("choices.text", &choices["text"])?, row.list("choices.label", &choices["label"])?);
    let answer = row.text("answerKey")?.trim_start();
    match labels.iter().position(|label| label == answer) {
        Some(gold) => Ok(chosen(context, texts, gold as i64)),
        None => row.mistaken("answerKey", row.field("answerKey")?, &format!("one of {}", labels.join(", "))),
    }
}

/// A text without the traces of its headings.
fn cleaned(text: &str) -> Result<String> {
    let text = stripped(text).replace(" [title]", ". ");
    Ok(BRACKETS.as_ref().context("a pattern")?.replace_all(&text, "").replace("  ", " "))
}

/// Python's `str.capitalize`: the first character large, all others small.
fn capitalised(text: &str) -> String {
    let mut characters = text.chars();
    characters
        .next()
        .map_or(String::new(), |first| first.to_uppercase().chain(characters.as_str().to_lowercase().chars()).collect())
}

/// Python's `str.strip`.
fn stripped(text: &str) -> &str {
    text.trim_matches(super::is_space)
}
