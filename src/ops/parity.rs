//! The proof that an operation's forms agree, in values and gradients.

use crate::device::Choice;
use candle_core::{Device, Result, Tensor, Var};

/// Numbers between −1.5 and 1.5 in no order.
pub fn wave(shape: &[usize], phase: f32) -> Tensor {
    let values: Vec<f32> = (0..shape.iter().product()).map(|i| 1.5 * (phase + 1.7 * i as f32).sin()).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// Compares on the CPU `fast` with `plain`, which is made of tensor operations whose gradients candle knows, and with
/// `fast` on every other device that there is: values, and gradients on all `inputs`. Without gradients `fast` has the same
/// bits.
pub fn agree(
    what: &str,
    inputs: &[Tensor],
    fast: impl Fn(&[Tensor]) -> Result<Tensor>,
    plain: impl Fn(&[Tensor]) -> Result<Tensor>,
) {
    let here = run(&fast, inputs, &Device::Cpu).unwrap();
    let untracked: Vec<f32> = fast(inputs).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    assert_eq!(here[0].flatten_all().unwrap().to_vec1::<f32>().unwrap(), untracked, "{what} with gradients");
    compare(&format!("{what} of plain operations"), &run(&plain, inputs, &Device::Cpu).unwrap(), &here);
    for device in other_devices() {
        compare(&format!("{what} on {:?}", device.location()), &run(&fast, inputs, &device).unwrap(), &here);
    }
}

/// The value of `f` and the gradients of its weighted sum, on the CPU.
fn run(f: &impl Fn(&[Tensor]) -> Result<Tensor>, inputs: &[Tensor], device: &Device) -> Result<Vec<Tensor>> {
    let vars = inputs.iter().map(|x| Var::from_tensor(&x.to_device(device)?)).collect::<Result<Vec<_>>>()?;
    let y = f(&vars.iter().map(|var| var.as_tensor().clone()).collect::<Vec<_>>())?;
    let graph = (&y * wave(y.dims(), 0.4).to_device(device)?)?.sum_all()?.backward()?;
    let gradients = vars.iter().map(|var| graph.get(var).expect("a gradient for every input").clone());
    std::iter::once(y.detach()).chain(gradients).map(|x| x.to_device(&Device::Cpu)).collect()
}

fn compare(what: &str, found: &[Tensor], wanted: &[Tensor]) {
    let size = |x: &Tensor| x.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    for (i, (found, wanted)) in found.iter().zip(wanted).enumerate() {
        let part = if i == 0 { "value".to_string() } else { format!("gradient {i}") };
        assert_eq!(found.dims(), wanted.dims(), "{what}, {part}");
        let (apart, size) = (size(&(found - wanted).unwrap()), size(wanted));
        assert!(size > 0.1 && apart < 2e-5 * size.max(1.0), "{what}, {part}: {apart:e} of {size}");
    }
}

/// Every device but the CPU, opened as for a run. Without one a test says what it leaves out.
pub fn other_devices() -> Vec<Device> {
    let gpu = Choice::Cuda(0).open(|_| ());
    gpu.inspect_err(|why| eprintln!("skipped on a GPU: {why}")).into_iter().collect()
}
