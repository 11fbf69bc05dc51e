//! Options that one method has: on its page, the same by every way to set them, refused by name where they do not fit. And
//! the help, which leaves them out.

use crate::program::{FAST, Place};
use clap::Parser;
use softlm::error::UserError;
use softlm::method::{
    DefaultValue, Domain, METHODS, Method, MethodOption, OptionValues, all_options, flag, page, value_of, variable,
};
use softlm::recipe::{Options, Recipe};
use toml::Value;

#[derive(Parser)]
struct CommandLine {
    #[command(flatten)]
    options: Options,
}

fn options(line: &str) -> Options {
    CommandLine::try_parse_from(format!("softlm {line}").split(' ')).unwrap_or_else(|e| panic!("{line}: {e}")).options
}

/// The recipe of a command line for `method`, whose windows have 64 tokens.
fn recipe(method: &dyn Method, line: &str) -> Recipe {
    let line = format!("demo --method {} --window 64 {line}", method.card().name);
    options(line.trim_end()).resolve().unwrap_or_else(|e| panic!("{line}: {e}"))
}

fn each_option() -> impl Iterator<Item = (&'static dyn Method, &'static MethodOption)> {
    METHODS.iter().flat_map(|method| method.options().iter().map(|option| (*method, *option)))
}

/// A value that the option takes and that is not its default.
fn another(option: &MethodOption) -> Value {
    let default = match option.default {
        DefaultValue::Fixed(text) | DefaultValue::OrWithTask(text, _) => Some(value_of(text)),
        DefaultValue::Derived { .. } | DefaultValue::Absent(_) => None,
    };
    match option.domain {
        Domain::Number(..) => {
            let number = default.and_then(|value| value.as_float().or(value.as_integer().map(|whole| whole as f64)));
            Value::Float(number.unwrap_or(0.5) / 2.0)
        }
        Domain::Count => 3.into(),
        Domain::Switch => (default != Some(true.into())).into(),
        Domain::OneOf(words) => {
            words().into_iter().map(|(word, _)| word.into()).find(|word| Some(word) != default.as_ref()).unwrap()
        }
    }
}

/// As it is typed.
fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), String::from)
}

/// As it stands in a recipe.
fn written(option: &MethodOption, value: &Value) -> String {
    format!("{}{} = {value}\n", option.table.map(|table| format!("[{table}]\n")).unwrap_or_default(), option.key)
}

/// What is wrong, and the way out.
fn refused(result: anyhow::Result<impl Sized>) -> (String, String) {
    let error = result.err().expect("a mistake");
    let hint = error.downcast_ref::<UserError>().and_then(UserError::hint_text).expect("a hint");
    (error.to_string(), hint.to_string())
}

#[test]
fn every_option_stands_on_the_page_of_its_method_with_its_default() {
    for (method, option) in each_option() {
        let page = page(method);
        let (_, table) = page.split_once("\n## Options\n").expect("options");
        let row = table.lines().find(|line| line.starts_with(&format!("| {} ", option.key)));
        let row = row.unwrap_or_else(|| panic!("{} is not on the page of {}", option.key, method.card().name));
        for part in [option.symbol, &option.default.describe(), option.help] {
            assert!(row.contains(part), "{part}: {row}");
        }
        let says = option.domain.describe();
        assert!(says.split(", ").all(|part| page.contains(part)), "{} takes {says}", option.key);
    }
    let soco = page(softlm::method::by_name("soco").unwrap());
    assert!(soco.lines().any(|line| line.starts_with("| cut ") && line.contains("| τ ") && line.contains("| 0.3 ")));
    assert!(soco.lines().any(|line| line.starts_with("| refinement ") && line.contains("refine = 0.25")), "{soco}");
}

#[test]
fn a_flag_a_set_and_a_recipe_mean_the_same() {
    let place = Place::new();
    for (method, option) in each_option() {
        let (value, key) = (another(option), option.key);
        let by_set = recipe(method, &format!("--set {key}={}", text(&value)));
        let by_flag = recipe(method, &format!("{}={}", flag(key), text(&value)));
        let file = place.write("r.toml", written(option, &value));
        let by_file = options(&format!("demo --method {} --window 64", method.card().name)).or_file(&file).unwrap();
        assert_eq!(by_set, by_flag, "{key}");
        assert_eq!(by_set, by_file.resolve().unwrap(), "{key}");
        assert_ne!(by_set, recipe(method, ""), "{key} = {value} changes nothing");
        if option.instead_of.is_none() {
            assert_eq!(by_set.options.value(option), Some(&value));
        }
        // What was made by it says so, and makes it again.
        let file = place.write("again.toml", by_set.to_toml().unwrap());
        assert_eq!(Options::default().or_file(&file).unwrap().resolve().unwrap(), by_set, "{key}");
    }
}

#[test]
fn what_learned_methods_declare_is_what_their_training_reads() {
    for name in ["soft", "soco"] {
        let method = softlm::method::by_name(name).unwrap();
        let recipe = recipe(method, "--set pressure=7");
        let read = serde_json::to_value(recipe.learn.expect("it learns")).unwrap();
        for (key, value) in recipe.options.table() {
            let value = serde_json::to_value(value).unwrap();
            let equal = read[&key] == value || read[&key].as_f64().is_some_and(|number| Some(number) == value.as_f64());
            assert!(equal, "{name}: {key} = {value} is read as {}", read[&key]);
        }
    }
}

#[test]
fn the_environment_means_the_same_too() {
    let place = Place::new();
    for method in METHODS.iter().filter(|method| !method.options().is_empty()) {
        let name = method.card().name;
        let set: Vec<(&MethodOption, String)> = (method.options().iter())
            .filter(|option| option.instead_of.is_none())
            .map(|option| (*option, text(&another(option))))
            .collect();
        let compress = format!("compress demo --method {name} --keep 0.6 --ppl none {FAST}");
        let environment: Vec<(String, &str)> = set.iter().map(|(o, value)| (variable(o.key), value.as_str())).collect();
        let environment: Vec<(&str, &str)> = environment.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        place.run_in(&format!("{compress} -o {name}-env"), &environment).fine();
        let flags: Vec<String> = set.iter().map(|(option, value)| format!("--set {}={value}", option.key)).collect();
        place.run(&format!("{compress} -o {name}-set {}", flags.join(" "))).fine();
        for file in ["softlm.toml", "model.safetensors"] {
            let [env, set] = ["env", "set"].map(|by| place.read(&format!("{name}-{by}/{file}")));
            let bytes = |content: Vec<u8>| String::from_utf8_lossy(&content).replace("-env", "").replace("-set", "");
            assert!(bytes(env) == bytes(set), "{name}: {file}");
        }
        let report: serde_json::Value =
            serde_json::from_slice(&place.read(&format!("{name}-env/report.json"))).unwrap();
        for (option, value) in &set {
            let table = option.table.map_or(&report["recipe"], |table| &report["recipe"][table]);
            let found = table[option.key].as_str().map_or(table[option.key].to_string(), String::from);
            assert_eq!(value_of(&found), value_of(value), "{name}: {}", option.key);
        }
    }
    // The command line goes first, also when it says the same in another way.
    let line = format!("compress demo --method soco --set tokens=384 --batch 3 --ppl none {FAST} -o tokens --json");
    let said = place.run_in(&line, &[("SOFTLM_STEPS", "500"), ("SOFTLM_BATCH", "2")]).fine();
    let report: serde_json::Value = serde_json::from_str(&said.stdout).unwrap();
    assert_eq!(report["recipe"]["learn"]["steps"], 2);
}

#[test]
fn wrong_values_are_refused_with_what_is_possible() {
    let place = Place::new();
    for (method, option) in each_option() {
        let wrong: &[&str] = match option.domain {
            Domain::Number(..) => &["-1", "nan", "inf", "many", "true"],
            Domain::Count => &["0", "-3", "1.5", "many"],
            Domain::Switch => &["7", "maybe"],
            Domain::OneOf(_) => &["nonsense", "1"],
        };
        for wrong in wrong {
            let line = format!("demo --method {} --window 64 --set {}={wrong}", method.card().name, option.key);
            let (what, hint) = refused(options(&line).resolve());
            let range = option.domain.describe();
            assert!(what.contains(option.key) && what.contains(wrong) && what.contains(&range), "{what}");
            assert!(hint.contains(option.help), "{hint}");
            let file = place.write("r.toml", format!("\n# a comment\n{}", written(option, &value_of(wrong))));
            let (what, _) = refused(Options::default().or_file(&file));
            let line = if option.table.is_some() { "r.toml, line 4: " } else { "r.toml, line 3: " };
            assert!(what.contains(line) && what.contains(option.key) && what.contains(&range), "{what}");
        }
    }
}

#[test]
fn an_option_of_another_method_is_refused_by_name() {
    for method in METHODS {
        let name = method.card().name;
        for option in all_options().filter(|option| !method.options().iter().any(|own| own.key == option.key)) {
            let line = format!("demo --method {name} --set {}={}", option.key, text(&another(option)));
            let (what, hint) = refused(options(&line).resolve());
            let owner = |other: &&&dyn Method| other.options().iter().any(|own| own.key == option.key);
            let owners: Vec<&str> = METHODS.iter().filter(owner).map(|owner| owner.card().name).collect();
            assert!(what.contains(&format!("{} is an option of {}", option.key, owners.join(" and "))), "{what}");
            assert!(what.contains(name) && hint.contains(&format!("softlm methods {name}")), "{what} {hint}");
        }
    }
    let nobodys = Options {
        model: Some("demo".into()),
        method: Some("soco".into()),
        method_options: OptionValues::default().with("shrpness", 3),
        ..Options::default()
    };
    let (what, hint) = refused(nobodys.resolve());
    assert!(what.contains("no method has an option shrpness") && hint.contains("softlm methods soco"), "{what} {hint}");
    let place = Place::new();
    let compress = "compress demo --method soco";
    place.run(&format!("{compress} --set cut=0.4 --set cut=0.5")).refused_by_usage("cut is set twice");
    place.run(&format!("{compress} --set cut=0.4 --cut 0.5")).refused_by_usage("cut is set twice");
    place.run(&format!("{compress} --set cut")).refused_by_usage("--set cut has no value");
    place.write("r.toml", "model = 'demo'\n[learn]\nsteps = 3\nshrpness = 5\n");
    place.run(&format!("{compress} --config r.toml")).refused(&["r.toml, line 4", "shrpness"]);
}

#[test]
fn recipes_merge_key_by_key_and_one_way_to_say_it_replaces_the_other() {
    let place = Place::new();
    let text =
        "model = 'demo'\nmethod = 'soco'\nwindow = 64\nkeep = 0.7\n[learn]\nsteps = 40\ncut = 0.4\nmax_time = '9s'\n";
    let file = place.write("r.toml", text);
    let merged = |line: &str| options(line).or_file(&file).unwrap().resolve().unwrap();
    let recipe = merged("--set cut=0.5 --likelihood 0.25 --target-params 600000");
    let learn = recipe.learn.as_ref().unwrap();
    assert_eq!((learn.steps, learn.settings.cut, recipe.max_seconds), (40, 0.5, Some(9.0)));
    assert_eq!((recipe.objective.likelihood, recipe.written.keep), (0.25, None));
    let recipe = merged("--set tokens=5120 --set batch=8");
    assert_eq!(recipe.learn.unwrap().steps, 10, "tokens replace the recipe's steps");
    let (what, _) = refused(options("demo --method svd --seed 9999999999999999999").resolve());
    assert!(what.contains("no recipe can hold these options"), "{what}");
}

#[test]
fn the_help_fits_on_two_screens() {
    let place = Place::new();
    let help = |flag: &str| place.run_in(&format!("compress {flag}"), &[("COLUMNS", "80")]).fine().stdout;
    let (long, short) = (help("--help"), help("-h"));
    let lines = |text: &str| text.lines().count();
    assert!(
        lines(&long) <= 100 && lines(&short) + 30 < lines(&long),
        "{} and {} lines\n{long}",
        lines(&long),
        lines(&short)
    );
    assert!(long.lines().all(|line| line.chars().count() <= 80), "{long}");
    for option in all_options() {
        assert!(!long.contains(&format!("{} ", flag(option.key))), "{}", option.key);
    }
    let general = serde_json::to_value(Options::default()).unwrap();
    for key in general.as_object().unwrap().keys().filter(|key| *key != "model") {
        assert!(long.contains(&flag(key)), "{key} is not in the help");
    }
    assert!(long.contains("--set <KEY=VALUE>") && long.contains("softlm methods NAME"), "{long}");
    assert!(short.contains("--keep") && !short.contains("--temperature"), "{short}");
}
