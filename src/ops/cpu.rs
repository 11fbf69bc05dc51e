//! How an operation runs on the CPU: it says what it makes of numbers, forward and backward; the rest is here.

use candle_core::{CpuStorage, CustomOp3, Error, Layout, Result, Shape, Storage, Tensor};
use std::ops::{Deref, Range};

/// An operation with `N` inputs, at most three.
pub(super) trait CpuOp<const N: usize>: Send + Sync + 'static {
    const NAME: &'static str;

    /// The result, and its shape.
    fn forward(&self, inputs: [Input; N]) -> Result<(Vec<f32>, Shape)>;

    /// The gradients on the inputs, where that on the result is `g`. It may be empty where none is `wanted`.
    fn backward(&self, inputs: [Input; N], g: &[f32], wanted: [bool; N]) -> Result<[Vec<f32>; N]>;
}

/// Numbers of a tensor in one piece, row-major, and its shape.
#[derive(Clone, Copy)]
pub(super) struct Input<'a> {
    numbers: &'a [f32],
    pub shape: &'a Shape,
}

impl Deref for Input<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        self.numbers
    }
}

/// What `op` makes of `inputs`, which lie in this machine's memory. Carries gradients where one of them is tracked.
pub(super) fn apply<const N: usize>(op: impl CpuOp<N>, inputs: [&Tensor; N]) -> Result<Tensor> {
    // candle's operations have one, two or three inputs: those that are missing are of no account.
    let missing = Tensor::new(0f32, inputs[0].device())?;
    let mut all = [missing.clone(), missing.clone(), missing];
    for (slot, input) in all.iter_mut().zip(inputs) {
        *slot = input.contiguous()?;
    }
    all[0].apply_op3(&all[1], &all[2], Applied(op))
}

struct Applied<Op, const N: usize>(Op);

impl<const N: usize, Op: CpuOp<N>> CustomOp3 for Applied<Op, N> {
    fn name(&self) -> &'static str {
        Op::NAME
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
        c: &CpuStorage,
        c_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let input = |storage, layout| Ok(Input { numbers: slice(storage, layout)?, shape: layout.shape() });
        let all: [Result<Input>; 3] = [input(a, a_layout), input(b, b_layout), input(c, c_layout)];
        let (numbers, shape) = self.0.forward(first(all)?)?;
        Ok((CpuStorage::F32(numbers), shape))
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let tensors = [a, b, c];
        let g = g.contiguous()?;
        let guards = [numbers(a)?, numbers(b)?, numbers(c)?];
        let inputs: [Input; N] = std::array::from_fn(|i| Input { numbers: &guards[i], shape: tensors[i].shape() });
        let gradients = self.0.backward(inputs, &numbers(&g)?, std::array::from_fn(|i| tensors[i].track_op()))?;
        let mut gradients = gradients.into_iter().zip(tensors).map(|(gradient, input)| {
            let missing = gradient.is_empty() && input.elem_count() > 0;
            if missing { Ok(None) } else { Tensor::from_vec(gradient, input.shape(), input.device()).map(Some) }
        });
        let mut next = || gradients.next().unwrap_or(Ok(None));
        Ok((next()?, next()?, next()?))
    }
}

fn first<T, const N: usize>(all: [Result<T>; 3]) -> Result<[T; N]> {
    let all: Vec<T> = all.into_iter().take(N).collect::<Result<_>>()?;
    all.try_into().map_err(|_| Error::msg("an operation of more than three inputs"))
}

struct Numbers<G> {
    storage: G,
    range: Range<usize>,
}

impl<G: Deref<Target = Storage>> Deref for Numbers<G> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(numbers)) => &numbers[self.range.clone()],
            _ => &[],
        }
    }
}

/// The numbers of an f32 tensor that lies in one piece in this machine's memory.
pub(super) fn numbers(x: &Tensor) -> Result<impl Deref<Target = [f32]> + Sync + '_> {
    let (storage, layout) = x.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(_)), Some((from, to))) => Ok(Numbers { storage, range: from..to }),
        _ => Err(Error::msg("not f32 numbers in one piece in this machine's memory")),
    }
}

fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let (from, to) = layout.contiguous_offsets().ok_or_else(|| Error::msg("the tensor is not in one piece"))?;
    Ok(&storage.as_slice::<f32>()?[from..to])
}
