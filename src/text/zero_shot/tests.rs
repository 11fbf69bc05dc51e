use super::*;
use crate::error::UserError;
use serde_json::json;

fn load(task: &str, content: &str, limit: Option<usize>) -> Result<Items> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("items.jsonl");
    std::fs::write(&path, content).unwrap();
    items(&format!("{task}={}", path.display()), limit, &HubOptions::default())
}

fn one(task: &str, row: Value) -> Item {
    load(task, &row.to_string(), None).unwrap().rows.remove(0)
}

fn pairs(item: &Item) -> Vec<(&str, &str)> {
    item.requests.iter().map(|r| (r.context.as_str(), r.continuation.as_str())).collect()
}

/// Expected: what the harness's `doc_to_text`, `doc_to_choice` and `doc_to_target` say, by hand.
#[test]
fn fields_of_the_hub_become_the_prompts_of_the_harness() {
    let piqa = one("piqa", json!({"goal": "Dry it", "sol1": "sun", "sol2": "räin", "label": 1}));
    assert_eq!(pairs(&piqa), [("Question: Dry it\nAnswer:", " sun"), ("Question: Dry it\nAnswer:", " räin")]);
    assert_eq!((piqa.gold, piqa.lengths, piqa.own_prompt), (1, vec![3, 4], false));

    let choices = json!({"text": ["a", "b", "c"], "label": ["1", "2", "3"]});
    let arc = one("arc_easy", json!({"question": "Why?", "choices": choices, "answerKey": "3"}));
    assert_eq!((pairs(&arc)[2], arc.gold), (("Question: Why?\nAnswer:", " c"), 2));
    let book = one("openbookqa", json!({"question_stem": "Plants", "choices": choices, "answerKey": " 2"}));
    assert_eq!((pairs(&book)[0], book.gold), (("Plants", " a"), 1));

    let swag = json!({"activity_label": "Baking", "ctx_a": "A man [step] sits.", "ctx_b": "he ÄTE", "label": "1",
        "endings": [" eats [title] now ", "x [a] [b] y"]});
    let swag = one("hellaswag", swag);
    assert_eq!(pairs(&swag)[0], ("Baking: A man sits. He äte", " eats. now"));
    assert_eq!((pairs(&swag)[1].1, swag.gold), (" x  y", 1));

    let winogrande = json!({"sentence": "The _ is in _ it. ", "option1": "cat", "option2": "dog", "answer": "2"});
    let winogrande = one("winogrande", winogrande);
    assert_eq!(pairs(&winogrande), [("The cat", " is in _ it."), ("The dog", " is in _ it.")]);
    assert_eq!(winogrande.gold, 1);

    let boolq = one("boolq", json!({"passage": "P.", "question": "is it", "label": 0}));
    assert_eq!(pairs(&boolq)[1], ("P.\nQuestion: is it?\nAnswer:", " yes"));
    assert_eq!((boolq.gold, one("boolq", json!({"passage": "P", "question": "q", "answer": true})).gold), (0, 1));

    let math = json!({"Problem": "1 + 1", "correct": "e", "options": "a ) 38 , b ) rs . 2,000 , c ) 3 , d ) 4 , e ) none of these"});
    let math = one("mathqa", math);
    let texts: Vec<&str> = math.requests.iter().map(|r| r.continuation.as_str()).collect();
    assert_eq!((texts, math.gold), (vec![" 38", " rs . 2,000", " 3", " 4", " none of these"], 4));

    let lambada = one("lambada", json!({"text": "I  do not\ncare"}));
    assert_eq!(pairs(&lambada), [("I  do", " not\ncare")]);
    assert_eq!(pairs(&one("lambada", json!({"text": "alone"}))), [("", " alone")]);
}

#[test]
fn rows_may_bring_their_own_prompts() {
    let item = one("arc_easy", json!({"query": "Question: Why?\n", "choices": ["a", "b"], "gold": 1}));
    assert_eq!(pairs(&item), [("Question: Why?\n", " a"), ("Question: Why?\n", " b")]);
    assert!(item.own_prompt && item.gold == 1);
    let item = one("winogrande", json!({"context_options": ["A", "B"], "continuation": "goes.", "gold": 0}));
    assert_eq!(pairs(&item), [("A", " goes."), ("B", " goes.")]);
    let item = one("lambada", json!({"context": "I care about", "continuation": "signs"}));
    assert_eq!(pairs(&item), [("I care about", " signs")]);
    let lines = "{\"query\": \"q\", \"choices\": [\"a\"], \"gold\": 0}\n".repeat(3);
    assert_eq!(load("piqa", &lines, Some(2)).unwrap().rows.len(), 2);
}

#[test]
fn mistakes_name_the_line_and_the_value() {
    let message = |task: &str, content: &str| {
        let error = load(task, content, None).unwrap_err();
        let user = error.downcast_ref::<UserError>().unwrap_or_else(|| panic!("{error:?}"));
        format!("{user} / {}", user.hint_text().expect("a hint"))
    };
    let good = r#"{"query": "q", "choices": ["a", "b"], "gold": 0}"#;
    for (task, content, named) in [
        ("cola", good.to_string(), "there is no task \"cola="),
        ("piqa", String::new(), "no items"),
        ("piqa", format!("{good}\n[1]"), "line 2 is no JSON object"),
        (
            "piqa",
            format!("{good}\n\n{{\"query\": \"q\", \"choices\": [\"a\"]}}"),
            "line 3 has no field \"gold\", but \"query\"",
        ),
        (
            "piqa",
            r#"{"query": "q", "choices": ["a", "b"], "gold": 2}"#.into(),
            "the right choice is 2, and there are 2",
        ),
        ("piqa", r#"{"query": "q", "choices": ["a", "b"], "gold": -1}"#.into(), "the right choice is -1"),
        ("piqa", r#"{"query": "q", "choices": ["a", "b"], "gold": "x"}"#.into(), "\"gold\" is \"x\", expected a whole"),
        ("piqa", r#"{"query": 7, "choices": ["a", "b"], "gold": 0}"#.into(), "\"query\" is 7, expected a text"),
        ("piqa", r#"{"query": "q", "choices": [], "gold": 0}"#.into(), "\"choices\" is [], expected a list"),
        ("piqa", r#"{"query": "q", "choices": ["a", 1], "gold": 0}"#.into(), "expected a list of texts"),
        (
            "arc_easy",
            r#"{"question": "q", "choices": {"text": ["a"], "label": ["A"]}, "answerKey": "B"}"#.into(),
            "\"answerKey\" is \"B\"",
        ),
        ("winogrande", r#"{"sentence": "no gap", "option1": "a", "option2": "b", "answer": "1"}"#.into(), "a gap"),
        (
            "winogrande",
            r#"{"sentence": "a _", "option1": "a", "option2": "b", "answer": ""}"#.into(),
            "\"answer\" is \"\"",
        ),
        ("mathqa", r#"{"Problem": "p", "options": "a ) 1 , e ) 2", "correct": "f"}"#.into(), "a letter from a to e"),
        ("lambada", r#"{"txt": "x"}"#.into(), "no field \"text\", but \"txt\""),
    ] {
        let found = message(task, &content);
        assert!(found.contains(named), "{content:?}: {found}");
    }
}
