//! The modules behind an encoder in a folder of sentence-transformers. What is accepted makes embeddings.

use super::place::Place;
use super::{Target, header, mutate, parts, refused};
use candle_core::{Device, Tensor};
use softlm::checkpoint::Source;
use softlm::eval::Modules;

pub const TARGET: Target = Target { name: "sentence", seeds, mutate: mutate::files, run };

const FILES: [&str; 4] =
    ["modules.json", "config_sentence_transformers.json", "1_Pooling/config.json", "2_Dense/config.json"];
/// The JSON of the header of the weights of a Dense module.
const DENSE: &str = "dense";
const WIDTH: usize = 4;

fn seeds() -> Vec<Vec<u8>> {
    let list = r#"[{"idx":0,"name":"0","path":"","type":"sentence_transformers.models.Transformer"},
        {"idx":1,"name":"1","path":"1_Pooling","type":"sentence_transformers.models.Pooling"},
        {"idx":2,"name":"2","path":"2_Dense","type":"sentence_transformers.models.Dense"},
        {"idx":3,"name":"3","path":"3_Normalize","type":"sentence_transformers.models.Normalize"}]"#;
    let short = r#"[{"type":"a.Transformer","path":""},{"type":"a.Pooling","path":"1_Pooling"}]"#;
    let settings = r#"{"similarity_fn_name":"dot","default_prompt_name":"query","prompts":{"query":"query: "}}"#;
    let pooling = r#"{"word_embedding_dimension":4,"pooling_mode_cls_token":true,"pooling_mode_mean_tokens":true,
        "pooling_mode_max_tokens":false,"pooling_mode_mean_sqrt_len_tokens":false}"#;
    let dense =
        r#"{"in_features":8,"out_features":3,"bias":true,"activation_function":"torch.nn.modules.activation.Tanh"}"#;
    let weights = r#"{"linear.weight":{"dtype":"F32","shape":[3,8],"data_offsets":[0,96]},
        "linear.bias":{"dtype":"F32","shape":[3],"data_offsets":[96,108]}}"#;
    let [modules, config, first, second] = FILES;
    let whole = [(modules, list), (config, settings), (first, pooling), (second, dense), (DENSE, weights)];
    vec![
        parts::join(&whole),
        parts::join(&[(modules, short), (first, pooling)]),
        parts::join(&[(first, pooling), (config, settings)]),
    ]
}

fn run(input: &[u8], place: &Place) -> bool {
    place.clear(&[]);
    let parts = parts::split(input);
    place.file("config.json", b"{}");
    place.file("model.safetensors", &header::file(b"{}", b""));
    for name in FILES {
        if let Some(content) = parts::find(&parts, name) {
            place.file(name, content);
        }
    }
    if let Some(json) = parts::find(&parts, DENSE) {
        place.file("2_Dense/model.safetensors", &header::file(json, &vec![0x3c; header::data_of(json)]));
    }
    let source = Source::open(place.path()).expect("a model");
    let modules = match Modules::read(&source) {
        Ok(modules) => modules,
        Err(error) => return refused(&error),
    };
    assert!(!modules.name().is_empty() && !modules.comparison().is_empty());
    assert!(modules.prompted("text").ends_with("text"));
    let states = Tensor::ones((3, WIDTH), candle_core::DType::F32, &Device::Cpu).expect("states");
    let embedding = modules.embed(&states).expect("an embedding");
    modules.similarity(&embedding, &embedding);
    true
}
