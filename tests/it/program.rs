//! Runs the program the way users do: in an empty folder, with an empty home, no network and no settings.

use softlm::checkpoint::{Dtype, NamedTensor, TensorFile, write_tensors};
use softlm::report::Report;
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

pub const METHODS: [&str; 8] = ["auto", "svd", "awsvd", "lorap", "rom", "whiten", "soft", "soco"];

/// `--method NAME`, and for one that learns so few steps that it takes a second.
pub fn quickly(method: &str) -> String {
    match method {
        "soft" => "--method soft --steps 6 --batch 2 --heal 3".to_string(),
        "soco" => "--method soco --steps 6 --batch 2".to_string(),
        _ => format!("--method {method}"),
    }
}

/// Little text, so that a run takes a second.
pub const FAST: &str = "--calib-windows 3 --window 64 --eval-window 64 --max-windows 2";

/// An empty folder to run the program in. Relative paths on the command line are in it.
pub struct Place(TempDir);

/// How a run ended.
pub struct Said {
    /// The exit status; -1 for a process ended by a signal.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Place {
    pub fn new() -> Self {
        let place = Self(tempfile::tempdir().expect("a scratch folder"));
        fs::create_dir(place.path("home")).expect("a home");
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).expect("a writable folder");
        path
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// The report of an output.
    pub fn report(&self, output: &str) -> Report {
        serde_json::from_slice(&self.read(&format!("{output}/report.json"))).expect("a report with every field")
    }

    /// The bytes of its weights.
    pub fn weights(&self, output: &str) -> Vec<u8> {
        self.read(&format!("{output}/model.safetensors"))
    }

    /// The program with the words of `line` as its arguments.
    pub fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_softlm"));
        command.args(line.split_whitespace()).current_dir(self.0.path()).env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("HOME", self.path("home")).env("HF_HOME", self.path("home")).env("HF_HUB_OFFLINE", "1");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub fn run(&self, line: &str) -> Said {
        finish(self.command(line).spawn().expect("the program starts"))
    }

    pub fn run_in(&self, line: &str, environment: &[(&str, &str)]) -> Said {
        finish(self.command(line).envs(environment.iter().copied()).spawn().expect("the program starts"))
    }

    pub fn run_with_input(&self, line: &str, input: &str) -> Said {
        let mut child = self.command(line).stdin(Stdio::piped()).spawn().expect("the program starts");
        let mut stdin = child.stdin.take().expect("a pipe");
        stdin.write_all(input.as_bytes()).expect("the program reads it");
        drop(stdin);
        finish(child)
    }

    /// A copy of the built-in model as a folder, to be damaged.
    pub fn demo_folder(&self, name: &str) -> PathBuf {
        let folder = self.path(name);
        copy_folder(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/demo"), &folder);
        folder
    }

    /// Waits until a file is there.
    pub fn wait_for(&self, name: &str) {
        let since = Instant::now();
        while !self.path(name).exists() {
            assert!(since.elapsed() < Duration::from_secs(120), "{name} never appeared");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Waits for the end of a run.
pub fn finish(child: Child) -> Said {
    let output = child.wait_with_output().expect("the program ends");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("output is UTF-8");
    Said { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
}

impl Said {
    /// The run was successful. Nothing that is no terminal ever gets an escape code.
    #[track_caller]
    pub fn fine(self) -> Self {
        assert_eq!(self.code, 0, "{}{}", self.stdout, self.stderr);
        assert!(!self.stdout.contains('\x1b') && !self.stderr.contains('\x1b'), "{}{}", self.stdout, self.stderr);
        self
    }

    /// The run was refused with what is wrong, the values in `naming`, and a way out.
    #[track_caller]
    pub fn refused(self, naming: &[&str]) -> Self {
        let said = &self.stderr;
        assert_eq!(self.code, 2, "{}{said}", self.stdout);
        assert_eq!(self.stdout, "", "an error is no result");
        let error = said.lines().position(|line| line.starts_with("error: "));
        assert!(error.is_some(), "{said}");
        let hint = said.lines().position(|line| line.starts_with("hint: ") && line.len() > 10);
        assert!(hint > error, "{said}");
        assert!(!said.contains("panicked") && !said.contains('\x1b'), "{said}");
        for value in naming {
            assert!(said.contains(value), "{value:?} is not named: {said}");
        }
        self
    }

    /// The command line was refused: a value that an option does not take.
    #[track_caller]
    pub fn refused_by_usage(self, value: &str) -> Self {
        assert_eq!((self.code, self.stdout.as_str()), (2, ""), "{}", self.stderr);
        assert!(self.stderr.contains(value) && !self.stderr.contains("panicked"), "{}", self.stderr);
        self
    }

    /// A check failed: exit status 1 and a line that says which.
    #[track_caller]
    pub fn check_failed(self, naming: &[&str]) -> Self {
        assert_eq!(self.code, 1, "{}{}", self.stdout, self.stderr);
        let failed: Vec<&str> = self.stderr.lines().filter(|line| line.starts_with("check failed: ")).collect();
        for value in naming {
            assert!(failed.iter().any(|line| line.contains(value)), "{value:?} is not named: {}", self.stderr);
        }
        self
    }
}

pub fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir(to).expect("a new folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        if entry.path().is_file() {
            fs::copy(entry.path(), to.join(entry.file_name())).expect("a copy");
        }
    }
}

/// All tensors of a safetensors file.
pub fn tensors(path: &Path) -> BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> {
    let file = TensorFile::open(path).expect("a safetensors file");
    let read = |name: &str| {
        let info = file.info(name).expect("listed");
        (name.to_string(), (info.dtype, info.shape.clone(), file.bytes(name).expect("there").to_vec()))
    };
    file.names().map(read).collect()
}

/// Writes the weights of a folder again after `change`.
pub fn change_weights(folder: &Path, change: impl Fn(&mut BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>)) {
    let path = folder.join("model.safetensors");
    let mut all = tensors(&path);
    change(&mut all);
    let all: Vec<NamedTensor> =
        all.into_iter().map(|(name, (dtype, shape, data))| NamedTensor::new(name, dtype, shape, data)).collect();
    write_tensors(&path, &all, &BTreeMap::from([("format".to_string(), "pt".to_string())])).expect("written");
}

/// Sets a key of a folder's config.json.
pub fn change_config(folder: &Path, key: &str, value: serde_json::Value) {
    let path = folder.join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path).expect("a config")).expect("JSON");
    config[key] = value;
    fs::write(&path, config.to_string()).expect("written");
}
