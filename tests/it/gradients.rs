//! Gradients of every trainable kind in every family: against finite differences, against the graph of the whole model,
//! and against PyTorch (`tests/golden/gradients.json`).

use crate::laws::Noise;
use candle_core::{Device, Tensor, Var};
use serde_json::Value;
use softlm::backward::*;
use softlm::checkpoint::{Source, TensorFile, write_tensors};
use softlm::learn::{AdamW, AdamWOptions, Group};
use softlm::model::{Block, Flow, Head, Linear, Model, Role, Site, Tap};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const RANK: usize = 3;
const OBJECTIVE: Objective = Objective { divergence: 1.0, temperature: 2.0, likelihood: 0.5 };

/// Every generated model, and the ids that its logits are known for.
fn models() -> Vec<(String, Vec<Vec<u32>>)> {
    let known = json("logits.json");
    let folders = std::fs::read_dir(here().join("models")).expect("generated models");
    let names = folders.map(|folder| folder.expect("a folder").file_name().into_string().expect("a name"));
    let ids = |name: &str| -> Vec<Vec<u32>> {
        let id = |id: &Value| id.as_u64().expect("an id") as u32;
        let rows = known["models"][name]["ids"].as_array().unwrap_or_else(|| panic!("{name} has no known logits"));
        rows.iter().map(|row| row.as_array().expect("a row").iter().map(id).collect()).collect()
    };
    let mut models: Vec<_> = names.map(|name| (name.clone(), ids(&name))).collect();
    models.sort();
    assert!(models.len() >= 3, "{models:?}");
    models
}

fn here() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(here().join(name)).expect("the golden is there")).expect("JSON")
}

fn open(name: &str) -> Model {
    let folder = here().join("models").join(name);
    Model::load(Source::open(&folder).expect("the checkpoint"), &Device::Cpu).expect("the model")
}

fn grid(rows: usize, cols: usize, f: impl Fn(f64, f64) -> f64) -> Tensor {
    let values: Vec<f32> = (0..rows * cols).map(|k| f((k / cols) as f64, (k % cols) as f64) as f32).collect();
    Tensor::from_vec(values, (rows, cols), &Device::Cpu).unwrap()
}

/// The model with two factorised linears; every weight of every block is trainable.
struct Everything<'a> {
    model: &'a Model,
    head: Head,
    vars: Vec<Vec<(String, Var)>>,
}

impl<'a> Everything<'a> {
    fn new(model: &'a Model) -> Self {
        let mut vars = Vec::new();
        for index in 0..model.blocks() {
            let mut found = Vec::new();
            let record = &mut |name: &str, weight: &Tensor| {
                found.push((name.to_string(), Var::from_tensor(weight)?));
                Ok(weight.clone())
            };
            factorised(model, index).map_weights(record).unwrap();
            vars.push(found);
        }
        Self { model, head: model.head().unwrap(), vars }
    }

    fn teacher(&self, rows: &[&[u32]]) -> Tensor {
        let mut states = self.model.embed(rows).unwrap();
        for index in 0..self.model.blocks() {
            states = self.model.block(index).unwrap().forward(&states, &mut ()).unwrap().unwrap();
        }
        states
    }

    /// The mean loss from `x` on, with the gradient on the final states.
    fn loss(&self, x: &Tensor, teacher: &Tensor, rows: &[&[u32]]) -> (f64, Forward, Tensor) {
        let segment = Segment { blocks: 0..self.blocks(), input: x, lengths: None };
        let pass = forward(self, segment).unwrap();
        let targets: usize = rows.iter().map(|row| row.len() - 1).sum();
        let teacher = Teacher { head: &self.head, states: teacher };
        let scale = 1.0 / targets as f64;
        let (sum, gradient) =
            token_loss_gradient(&self.head, &pass.output, Some(teacher), rows, &OBJECTIVE, scale).unwrap();
        (sum * scale, pass, gradient)
    }
}

fn factorised(model: &Model, index: usize) -> Block<'_> {
    let mut block = model.block(index).unwrap();
    if index == 0 {
        // The first and the last linear: q and down in a decoder.
        for spec in [model.block_linears(0).next().unwrap(), model.block_linears(0).last().unwrap()] {
            let role = spec.id.role;
            let a = grid(RANK, spec.input, |i, j| 0.3 * (1.0 + 0.7 * i + 1.3 * j).cos());
            let b = grid(spec.out, RANK, |i, j| 0.3 * (1.0 + 1.1 * i + 0.9 * j).sin());
            block.swap_linear(role, Linear::LowRank { a, b, bias: model.bias(spec).unwrap() }).unwrap();
        }
    }
    block
}

impl BlockStack for Everything<'_> {
    fn blocks(&self) -> usize {
        self.model.blocks()
    }

    fn block(&self, index: usize) -> anyhow::Result<Block<'_>> {
        let mut block = factorised(self.model, index);
        let mut vars = self.vars[index].iter();
        block.map_weights(&mut |name, _| {
            let (known, var) = vars.next().expect("as many weights as before");
            assert_eq!(name, known);
            Ok(var.as_tensor().clone())
        })?;
        Ok(block)
    }

    fn parameters(&self, index: usize) -> Vec<Var> {
        self.vars[index].iter().map(|(_, var)| var.clone()).collect()
    }
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect()
}

fn norm(values: &[f64]) -> f64 {
    values.iter().map(|x| x * x).sum::<f64>().sqrt()
}

fn distance(a: &Tensor, b: &Tensor) -> f64 {
    norm(&values(&(a - b).unwrap())) / norm(&values(b))
}

/// Runs `check` on each model with its student, windows, teacher states and embeddings.
fn each(mut check: impl FnMut(&str, &Everything, &[&[u32]], &Tensor, &Tensor)) {
    for (name, rows) in models() {
        let model = open(&name);
        let student = Everything::new(&model);
        let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
        let teacher = student.teacher(&rows);
        let x = model.embed(&rows).unwrap();
        check(&name, &student, &rows, &teacher, &x);
    }
}

fn gradients(
    student: &Everything,
    x: &Tensor,
    teacher: &Tensor,
    rows: &[&[u32]],
) -> (f64, Vec<Option<Tensor>>, Tensor) {
    let (loss, pass, gradient) = student.loss(x, teacher, rows);
    let mut sums = Gradients::new(student);
    let input = backward(student, pass, gradient, None, &mut sums).unwrap();
    (loss, sums.all(), input)
}

/// Without rotation a key's bias shifts all scores of a query alike: softmax does not see it, its gradient is rounding.
fn unseen(model: &str, weight: &str) -> bool {
    ["gpt2-tiny", "opt-tiny", "bert-tiny", "distilbert-tiny"].contains(&model) && weight == "attn.k.bias"
}

/// The block with every weight in a variable.
fn tracked(mut block: Block<'_>) -> Block<'_> {
    block.map_weights(&mut |_, weight| Ok(Var::from_tensor(weight)?.into_inner())).unwrap();
    block
}

#[test]
fn gradients_change_no_bit_of_the_forward_pass() {
    for (name, rows) in models() {
        let model = open(&name);
        let mut x = model.embed(&rows.iter().map(Vec::as_slice).collect::<Vec<_>>()).unwrap();
        for index in 0..model.blocks() {
            let plain = factorised(&model, index).forward(&x, &mut ()).unwrap().unwrap();
            let y = tracked(factorised(&model, index)).forward(&x, &mut ()).unwrap().unwrap();
            assert!(y.track_op() && !plain.track_op(), "{name} block {index}");
            assert_eq!(values(&y), values(&plain), "{name} block {index}");
            x = plain;
        }
        let (head, h) = (model.head().unwrap(), x.get(0).unwrap());
        let logits = head.logits(&Var::from_tensor(&h).unwrap()).unwrap();
        assert!(logits.track_op() && values(&logits) == values(&head.logits(&h).unwrap()), "{name}");
    }
}

#[test]
fn what_comes_later_changes_nothing() {
    let model = Model::load(Source::demo(), &Device::Cpu).unwrap();
    let row: Vec<u32> = (0..512).map(|i| (7 + 31 * i) % 1024).collect();
    let block = model.block(0).unwrap();
    let x = model.embed(&[&row]).unwrap();
    let long = block.forward(&x, &mut ()).unwrap().unwrap();
    let short = block.forward(&x.narrow(1, 0, 100).unwrap(), &mut ()).unwrap().unwrap();
    assert!(distance(&short, &long.narrow(1, 0, 100).unwrap()) < 1e-5);
}

#[test]
fn gradients_are_those_of_finite_differences() {
    each(|name, student, rows, teacher, x| {
        let (_, all, input) = gradients(student, x, teacher, rows);
        let mut noise = Noise(23);
        let mut check = |what: &str, value: &Tensor, gradient: &Tensor, set: &dyn Fn(&Tensor) -> Tensor| {
            // Along the signs of the gradient, so that no entry can hide, each with a weight of its own.
            let g = values(gradient);
            let d: Vec<f32> = g.iter().map(|g| (g.signum() * (0.5 + noise.next().abs().min(1.0))) as f32).collect();
            let size = norm(&d.iter().map(|&d| f64::from(d)).collect::<Vec<_>>());
            let expected: f64 = g.iter().zip(&d).map(|(g, &d)| g * f64::from(d)).sum();
            let d = Tensor::from_vec(d, value.shape(), &Device::Cpu).unwrap();
            let slope = |step: f64| {
                let at = |sign: f64| {
                    let moved = (value + (&d * (sign * step / size)).unwrap()).unwrap();
                    student.loss(&set(&moved), teacher, rows).0
                };
                let slope = (at(1.0) - at(-1.0)) / (2.0 * step) * size;
                set(value);
                slope
            };
            // The error of a central difference is quadratic: two of them cancel it. Where the loss bends sharply,
            // or jumps because a token changes its experts, the steps must be short; where it does not they must be long
            // enough for rounding not to matter.
            let found = [0.02, 0.005, 0.00125, 0.0003].map(|step| (4.0 * slope(step) - slope(2.0 * step)) / 3.0);
            let close = found.iter().any(|found| (found / expected - 1.0).abs() < 5e-3);
            assert!(expected > 0.0 && close, "{name} {what}: {expected} for {found:?}");
        };
        let mut all = all.into_iter();
        for (index, vars) in student.vars.iter().enumerate() {
            for (what, var) in vars {
                let gradient = all.next().unwrap();
                if unseen(name, what) {
                    assert!(gradient.is_none_or(|g| norm(&values(&g)) < 1e-5), "{name} {index}.{what}");
                    continue;
                }
                let gradient = gradient.unwrap_or_else(|| panic!("{name} {index}.{what} has no gradient"));
                let start = var.as_tensor().copy().unwrap().detach();
                let set = |moved: &Tensor| {
                    var.set(moved).unwrap();
                    x.clone()
                };
                check(&format!("{index}.{what}"), &start, &gradient, &set);
            }
        }
        check("input", x, &input, &|moved| moved.clone());
    });
}

#[test]
fn recomputed_blocks_give_the_gradients_of_the_whole_graph() {
    each(|name, student, rows, teacher, x| {
        let (_, found, input) = gradients(student, x, teacher, rows);
        let (_, _, on_output) = student.loss(x, teacher, rows);
        let x = Var::from_tensor(x).unwrap();
        let mut y = x.as_tensor().clone();
        for index in 0..student.blocks() {
            y = student.block(index).unwrap().forward(&y, &mut ()).unwrap().unwrap();
        }
        let graph = (y * on_output).unwrap().sum_all().unwrap().backward().unwrap();
        let vars = student.vars.iter().flatten();
        for ((what, var), found) in vars.zip(found).filter(|((what, _), _)| !unseen(name, what)) {
            let (found, expected) = (found.unwrap(), graph.get(var).unwrap());
            assert!(distance(&found, expected) < 1e-5, "{name} {what}: {:e}", distance(&found, expected));
        }
        assert!(distance(&input, graph.get(&x).unwrap()) < 1e-5, "{name}");
    });
}

/// Σ g xᵀ over the tokens that a linear saw, with x its input and g the gradient on its output.
struct Products {
    model: Model,
    /// The blocks, in the order in which they were seen.
    entered: Vec<usize>,
    inputs: BTreeMap<Site, Tensor>,
    found: BTreeMap<(usize, Role), Tensor>,
}

impl Products {
    fn new(name: &str) -> Self {
        let model = open(name).with_small_linears();
        Self { model, entered: Vec::new(), inputs: BTreeMap::new(), found: BTreeMap::new() }
    }
}

fn by_rows(x: &Tensor) -> Tensor {
    x.detach().reshape(((), *x.dims().last().unwrap())).unwrap()
}

impl Tap for Products {
    fn see(&mut self, site: Site, x: &Tensor) -> anyhow::Result<Flow> {
        assert!(self.inputs.insert(site, by_rows(x)).is_none(), "{site} twice in one pass");
        Ok(Flow::Continue)
    }
}

impl GradientTap for Products {
    fn enter(&mut self, index: usize) -> anyhow::Result<()> {
        self.entered.push(index);
        self.inputs.clear();
        Ok(())
    }

    fn see_gradient(&mut self, role: Role, gradient: &Tensor) -> anyhow::Result<()> {
        let index = *self.entered.last().expect("a block was entered");
        let spec = self.model.block_linears(index).find(|spec| spec.id.role == role).expect("a linear");
        let product = by_rows(gradient).t()?.matmul(&self.inputs[&spec.site])?;
        assert_eq!(product.dims(), [spec.out, spec.input], "{role}");
        assert!(self.found.insert((index, role), product).is_none(), "{role} twice");
        Ok(())
    }
}

/// Inputs and output gradients make the gradients of weights: of a dense one W that of their products G, of two factors
/// Bᵀ G and G Aᵀ. Seeing them changes no gradient.
#[test]
fn a_tap_sees_what_the_gradients_of_weights_are_made_of() {
    each(|name, student, rows, teacher, x| {
        let (_, plain, _) = gradients(student, x, teacher, rows);
        let (_, pass, gradient) = student.loss(x, teacher, rows);
        let (mut tap, mut sums) = (Products::new(name), Gradients::new(student));
        backward(student, pass, gradient, Some(&mut tap), &mut sums).unwrap();
        let all = sums.all();
        for (plain, seen) in plain.iter().zip(&all) {
            assert_eq!(plain.as_ref().map(values), seen.as_ref().map(values), "{name}");
        }
        assert!(tap.entered.iter().copied().eq((0..student.blocks()).rev()), "{name}: {:?}", tap.entered);
        assert_eq!(tap.found.len(), tap.model.linears().len(), "{name}");
        let names = student.vars.iter().enumerate().flat_map(|(i, vars)| vars.iter().map(move |(n, var)| (i, n, var)));
        let of_weights: BTreeMap<_, _> = names.zip(all).map(|((i, n, var), g)| ((i, n.clone()), (var, g))).collect();
        for ((index, role), product) in &tap.found {
            let of = |part: &str| of_weights.get(&(*index, format!("{role}.{part}")));
            let check = |what: &str, expected: &Tensor, found: Tensor| {
                let off = distance(&found, expected);
                assert!(norm(&values(expected)) > 0.0 && off < 1e-5, "{name} {index}.{role}.{what}: {off:e}");
            };
            match (of("weight"), of("factor_a"), of("factor_b")) {
                (Some((_, g)), None, None) => check("weight", g.as_ref().unwrap(), product.clone()),
                (None, Some((a, on_a)), Some((b, on_b))) => {
                    let (a, b) = (a.as_detached_tensor(), b.as_detached_tensor());
                    check("factor_a", on_a.as_ref().unwrap(), b.t().unwrap().matmul(product).unwrap());
                    check("factor_b", on_b.as_ref().unwrap(), product.matmul(&a.t().unwrap()).unwrap());
                }
                _ => panic!("{name}: {role} has no weights"),
            }
        }
    });
}

/// Any blocks, any loss of what leaves them: here the squared distance to other states, against the graph of the whole.
#[test]
fn a_range_of_blocks_has_gradients_of_its_own() {
    each(|name, student, _, teacher, x| {
        let range = student.blocks() - 1..student.blocks();
        let segment = || Segment { blocks: range.clone(), input: x, lengths: None };
        let end = |y: &Tensor| squared_distance_gradient(y, teacher, 0.5);
        let mut sums = Gradients::new(student);
        let loss = loss_and_gradients(student, segment(), &end, None, &mut sums).unwrap();
        let pass = forward(student, segment()).unwrap();
        let (_, gradient) = end(&pass.output).unwrap();
        let input = backward(student, pass, gradient, None, &mut Gradients::new(student)).unwrap();
        let x = Var::from_tensor(x).unwrap();
        let y = student.block(range.start).unwrap().forward(&x, &mut ()).unwrap().unwrap();
        let whole = (y - teacher).unwrap().sqr().unwrap().sum_all().unwrap();
        let graph = (&whole * 0.5).unwrap().backward().unwrap();
        let expected = f64::from(whole.to_scalar::<f32>().unwrap());
        assert!(expected > 0.1 && (loss / expected - 1.0).abs() < 1e-5, "{name}: {loss} for {expected}");
        assert!(distance(&input, graph.get(&x).unwrap()) < 1e-5, "{name}");
        let mut all = sums.all().into_iter();
        for (index, vars) in student.vars.iter().enumerate() {
            for ((what, var), found) in vars.iter().zip(&mut all) {
                match found {
                    Some(found) if !unseen(name, what) => {
                        let off = distance(&found, graph.get(var).unwrap());
                        assert!(range.contains(&index) && off < 1e-5, "{name} {index}.{what}: {off:e}");
                    }
                    found => assert!(unseen(name, what) || !range.contains(&index), "{name} {index}.{what}: {found:?}"),
                }
            }
        }
        // A model of which nothing is trained shows a tap the same blocks, and no others.
        let mut tap = Products::new(name);
        let mut nothing = Gradients::new(student.model);
        loss_and_gradients(student.model, segment(), &end, Some(&mut tap), &mut nothing).unwrap();
        assert_eq!(tap.entered, range.clone().collect::<Vec<_>>(), "{name}");
        assert_eq!(tap.found.len(), tap.model.block_linears(range.start).count(), "{name}");
        assert!(nothing.all().is_empty());
    });
}

/// ‖y − y'‖² is not finite: there is nothing to take back.
#[test]
fn a_loss_that_is_not_finite_has_no_gradients() {
    let model = open("llama-tiny-bias");
    let student = Everything::new(&model);
    let x = model.embed(&[&[1u32, 2, 3, 4]]).unwrap();
    let mut sums = Gradients::new(&student);
    let segment = Segment { blocks: 0..model.blocks(), input: &x, lengths: None };
    let end = |y: &Tensor| squared_distance_gradient(y, &(y * f64::INFINITY)?, 1.0);
    assert!(!loss_and_gradients(&student, segment, &end, None, &mut sums).unwrap().is_finite());
    assert!(sums.all().iter().all(Option::is_none));
}

#[test]
fn batches_add_up() {
    each(|name, student, rows, teacher, x| {
        let (_, whole, _) = gradients(student, x, teacher, rows);
        let mut sums = Gradients::new(student);
        for (i, row) in rows.iter().enumerate() {
            let part = |t: &Tensor| t.narrow(0, i, 1).unwrap();
            let (_, pass, gradient) = student.loss(&part(x), &part(teacher), &[*row]);
            backward(student, pass, (gradient * 0.5).unwrap(), None, &mut sums).unwrap();
        }
        let norm_before = sums.norm().unwrap();
        let limit = 0.5 * norm_before;
        let parts = sums.all();
        let mut clipped = Gradients::new(student);
        let mut slots = parts.iter();
        for (index, vars) in student.vars.iter().enumerate() {
            for slot in 0..vars.len() {
                clipped.add(index, slot, slots.next().unwrap().clone().unwrap()).unwrap();
            }
        }
        assert_eq!(clipped.clip(2.0 * norm_before).unwrap(), norm_before);
        assert_eq!(clipped.norm().unwrap(), norm_before, "{name}: nothing to clip");
        clipped.clip(limit).unwrap();
        assert!((clipped.norm().unwrap() / limit - 1.0).abs() < 1e-5, "{name}");
        for (i, (part, whole)) in parts.iter().zip(&whole).enumerate() {
            let (part, whole) = (part.as_ref().unwrap(), whole.as_ref().unwrap());
            let close = norm(&values(&(part - whole).unwrap())) <= 1e-5 * norm(&values(whole)) + 1e-7;
            assert!(close, "{name} parameter {i}");
        }
    });
}

#[test]
fn gradients_are_those_of_pytorch() {
    let golden = json("gradients.json");
    let mut compared = 0;
    each(|name, student, rows, teacher, x| {
        let Some(expected) = golden["models"].get(name) else { return };
        compared += 1;
        let (loss, all, input) = gradients(student, x, teacher, rows);
        let wanted = expected["kl"].as_f64().unwrap() + 0.5 * expected["nll"].as_f64().unwrap();
        assert!((loss / wanted - 1.0).abs() < 1e-5, "{name}: loss {loss} for {wanted}");
        let check = |what: &str, g: &Tensor, wanted: &Value| {
            let g = values(g);
            let probe: f64 = g.iter().enumerate().map(|(i, g)| g * (1.0 + i as f64).cos()).sum();
            let (size, wanted_probe) = (wanted[0].as_f64().unwrap(), wanted[1].as_f64().unwrap());
            // The gradient of a key's bias is zero but for rounding.
            let (n, slack) = (norm(&g), 1e-4 * size + 1e-6);
            assert!(
                (n - size).abs() < slack && (probe - wanted_probe).abs() < 3.0 * slack,
                "{name} {what}: {n} {size}"
            );
        };
        let names =
            student.vars.iter().enumerate().flat_map(|(i, vars)| vars.iter().map(move |(n, _)| format!("{i}.{n}")));
        let mut count = 0;
        for (what, gradient) in names.zip(all) {
            check(&what, &gradient.unwrap(), &expected["gradients"][what.as_str()]);
            count += 1;
        }
        assert_eq!(count, expected["gradients"].as_object().unwrap().len(), "{name}");
        check("input", &input, &expected["input"]);
    });
    assert_eq!(compared, golden["models"].as_object().unwrap().len());
}

#[test]
fn adamw_steps_are_those_of_pytorch_and_survive_a_restart() {
    let golden = json("gradients.json");
    let vector = |n: usize, f: &dyn Fn(f64) -> f64| {
        Tensor::from_vec((0..n).map(|i| f(i as f64) as f32).collect::<Vec<_>>(), n, &Device::Cpu).unwrap()
    };
    let start = || {
        let x = Var::from_tensor(&vector(12, &|i| (1.0 + i).cos())).unwrap();
        let y = Var::from_tensor(&vector(5, &|i| (2.0 + i).sin())).unwrap();
        let group = |lr, weight_decay, name: &str, var: &Var| Group {
            lr,
            weight_decay,
            parameters: vec![(name.to_string(), var.clone())],
        };
        let groups = vec![group(0.02, 0.1, "x", &x), group(0.006, 0.0, "y", &y)];
        (AdamW::new(groups, AdamWOptions::default()).unwrap(), x, y)
    };
    let (mut optimiser, x, y) = start();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.safetensors");
    let mut saved = None;
    // The factor halves both rates: 0.02 · 0.5 is the golden's 0.01.
    let step = |optimiser: &mut AdamW, s: usize| {
        let s = s as f64;
        let gx = vector(12, &|i| (1.0 + 3.0 * s + i).sin());
        let gy = (s != 2.0).then(|| vector(5, &|i| 0.01 * (s + 2.0 * i).cos()));
        optimiser.step(&[Some(gx), gy], 0.5).unwrap();
    };
    let check = |x: &Var, y: &Var, s: usize| {
        for (var, wanted) in [x, y].iter().zip(golden["adamw"][s].as_array().unwrap()) {
            for (found, wanted) in values(var).iter().zip(wanted.as_array().unwrap()) {
                let wanted = wanted.as_f64().unwrap();
                assert!((found - wanted).abs() < 1e-6, "step {s}: {found} for {wanted}");
            }
        }
    };
    for s in 0..5 {
        step(&mut optimiser, s);
        check(&x, &y, s);
        if s == 2 {
            write_tensors(&path, &optimiser.state(), &BTreeMap::new()).unwrap();
            saved = Some((x.copy().unwrap(), y.copy().unwrap()));
        }
    }
    let (mut again, x2, y2) = start();
    let (x_saved, y_saved) = saved.unwrap();
    x2.set(&x_saved).unwrap();
    y2.set(&y_saved).unwrap();
    again.restore(&TensorFile::open(&path).unwrap()).unwrap();
    (3..5).for_each(|s| step(&mut again, s));
    assert_eq!((values(&x2), values(&y2)), (values(&x), values(&y)), "bit for bit");
}
