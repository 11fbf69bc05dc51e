//! What the tokenizer classes of transformers do beside what the files say. Where versions differ it is that of 4.57.

/// A family of tokenizer classes that have the same rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// `tokenizer.json` says everything, as for `PreTrainedTokenizerFast`.
    Plain,
    /// Byte-level BPE with the pre-tokenizer of GPT-2.
    Gpt2,
    /// The same over text in normal form C, with its own post-processor.
    GptNeoX,
    /// Byte-level BPE over text in normal form C with a pre-tokenizer of its own.
    Qwen2,
    /// SentencePiece's BPE with bytes for what it does not know, begun by BOS.
    Llama,
    /// The same, without a space in front.
    Gemma,
    /// WordPiece.
    Bert,
}

impl Class {
    /// By the name of the class, with or without `Fast`.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name.strip_suffix("Fast").unwrap_or(name) {
            "PreTrainedTokenizer" | "TokenizersBackend" => Self::Plain,
            "GPT2Tokenizer" | "CodeGenTokenizer" => Self::Gpt2,
            "GPTNeoXTokenizer" => Self::GptNeoX,
            "Qwen2Tokenizer" => Self::Qwen2,
            "LlamaTokenizer" | "CodeLlamaTokenizer" => Self::Llama,
            "GemmaTokenizer" => Self::Gemma,
            "BertTokenizer" | "DistilBertTokenizer" | "ElectraTokenizer" | "MobileBertTokenizer" => Self::Bert,
            _ => return None,
        })
    }

    /// By `model_type` of config.json, where no class is named.
    pub fn of_model(model_type: &str) -> Option<Self> {
        Some(match model_type {
            "gpt2" | "opt" | "phi" => Self::Gpt2,
            "gpt_neox" | "mamba" | "mamba2" | "falcon_mamba" => Self::GptNeoX,
            "llama" | "mistral" | "mixtral" | "phi3" => Self::Llama,
            "bert" | "distilbert" => Self::Bert,
            other if other.starts_with("qwen") => Self::Qwen2,
            other if other.starts_with("gemma") => Self::Gemma,
            _ => return None,
        })
    }

    /// The text of a special token (`bos`, `unk`, …) where the settings do not name it.
    pub fn special(self, name: &str) -> Option<&'static str> {
        let table: &[(&str, &str)] = match self {
            Self::Plain => &[],
            Self::Gpt2 | Self::GptNeoX => {
                &[("unk", "<|endoftext|>"), ("bos", "<|endoftext|>"), ("eos", "<|endoftext|>")]
            }
            Self::Qwen2 => &[("unk", "<|endoftext|>"), ("eos", "<|endoftext|>"), ("pad", "<|endoftext|>")],
            Self::Llama => &[("unk", "<unk>"), ("bos", "<s>"), ("eos", "</s>")],
            Self::Gemma => &[("unk", "<unk>"), ("bos", "<bos>"), ("eos", "<eos>"), ("pad", "<pad>")],
            Self::Bert => &[("unk", "[UNK]"), ("sep", "[SEP]"), ("pad", "[PAD]"), ("cls", "[CLS]"), ("mask", "[MASK]")],
        };
        table.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
    }

    /// Whether it makes its own post-processor, whatever `tokenizer.json` has, and whether BOS is part of it by default.
    pub fn frames(self) -> Option<bool> {
        match self {
            Self::Llama | Self::Gemma => Some(true),
            Self::GptNeoX => Some(false),
            _ => None,
        }
    }
}
