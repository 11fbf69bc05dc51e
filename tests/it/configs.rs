//! The recipes in `configs/`: one per method, each accepted as it stands, each headed by what it does.

use softlm::method::METHODS;
use softlm::recipe::Options;
use std::path::Path;

#[test]
fn every_method_has_a_recipe_that_is_accepted() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
    for method in METHODS {
        let name = method.card().name;
        let path = folder.join(format!("{name}.toml"));
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert!(text.starts_with("# ") && text.contains(&format!("--config configs/{name}.toml")), "{name}");
        let recipe =
            Options::default().or_file(&path).and_then(Options::resolve).unwrap_or_else(|e| panic!("{name}: {e:#}"));
        assert_eq!((recipe.method.as_str(), recipe.inputs), (name, method.inputs()), "{name}");
        assert_eq!(recipe.allocation, method.allocation(), "{name}");
    }
    let files = std::fs::read_dir(&folder).expect("configs is there").count();
    assert_eq!(files, METHODS.len(), "a recipe for a method that does not exist");
}

#[test]
fn flags_go_before_the_recipe() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/whiten.toml");
    let flags = Options { keep: Some(0.5), seed: Some(7), ..Options::default() };
    let recipe = flags.or_file(&path).and_then(Options::resolve).expect("the recipe is fine");
    assert_eq!((recipe.keep, recipe.target_params, recipe.seed), (0.5, None, 7));
    assert_eq!(recipe.model, "demo");
}
