//! What makes an output usable elsewhere.

mod remote_code;

pub use remote_code::{LOADING_CODE, StoredLinear, output_config};
