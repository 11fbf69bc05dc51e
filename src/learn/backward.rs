//! Gradients through the blocks in the memory of one.
//!
//! The forward pass keeps only what enters each block. On the way back a block is run again from that, this time with a
//! graph, and its graph is dropped before the block in front of it is run: memory is one block's graph and one hidden
//! state per block, whatever the depth. With y the block's output and g the gradient on it, ∂(Σ y ∘ g) is the
//! vector-Jacobian product that backpropagation needs.

use crate::model::Block;
use anyhow::{Context, Result};
use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor, Var};

/// A model in training, block by block.
pub trait Student {
    /// Number of blocks.
    fn blocks(&self) -> usize;

    /// Block `index`, [differentiable](Block::set_differentiable), made of its parameters or of tensors computed from
    /// them, and of frozen tensors, which must not be variables.
    fn block(&self, index: usize) -> Result<Block<'_>>;

    /// What is trained in block `index`. The order matters: that of [`Gradients::all`] follows from it.
    fn parameters(&self, index: usize) -> Vec<Var>;
}

/// What a forward pass leaves for the backward pass.
pub struct Forward {
    /// What entered each block, (windows, t, hidden).
    pub inputs: Vec<Tensor>,
    /// What left the last one.
    pub output: Tensor,
    /// Tokens of each sequence, where some are padded.
    pub lengths: Option<Vec<usize>>,
}

/// Runs x (windows, t, hidden) through all blocks. Where there are `lengths`, x is padded behind them.
pub fn forward(student: &dyn Student, x: &Tensor, lengths: Option<&[usize]>) -> Result<Forward> {
    let mut inputs = Vec::with_capacity(student.blocks());
    let mut output = x.detach();
    for index in 0..student.blocks() {
        let mut block = student.block(index)?;
        // Nobody asks this pass for gradients.
        block.leave_unchecked();
        let y = run(&block, &output, lengths)?.detach();
        inputs.push(std::mem::replace(&mut output, y));
    }
    Ok(Forward { inputs, output, lengths: lengths.map(<[usize]>::to_vec) })
}

/// Takes `gradient`, that on the output of `pass`, back through the blocks and adds to `sums` what it leaves at their
/// parameters. Blocks in front of the first one that has parameters are left out; returns the gradient on that one's
/// input.
pub fn backward(student: &dyn Student, pass: Forward, gradient: Tensor, sums: &mut Gradients) -> Result<Tensor> {
    let first = (0..student.blocks()).find(|&i| !student.parameters(i).is_empty()).unwrap_or(student.blocks());
    let mut gradient = gradient.detach();
    for (index, input) in pass.inputs.into_iter().enumerate().skip(first).rev() {
        let input = Var::from_tensor(&input)?;
        let y = run(&student.block(index)?, &input, pass.lengths.as_deref())?;
        let mut graph = back_from(&y, &gradient)?;
        for (slot, parameter) in student.parameters(index).iter().enumerate() {
            if let Some(part) = graph.remove(parameter) {
                sums.add(index, slot, part)?;
            }
        }
        gradient = graph.remove(&input).with_context(|| format!("block {index} passes no gradient on"))?.detach();
    }
    Ok(gradient)
}

/// The gradients of Σ y ∘ `gradient`.
pub(super) fn back_from(y: &Tensor, gradient: &Tensor) -> Result<GradStore> {
    let start =
        if y.device().is_cpu() { y.apply_op1(WithGradient(gradient.clone()))? } else { (y * gradient)?.sum_all()? };
    Ok(start.backward()?)
}

/// A number whose gradient on what it is made of is given. The number itself does not matter.
struct WithGradient(Tensor);

impl CustomOp1 for WithGradient {
    fn name(&self) -> &'static str {
        "with-gradient"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.0]), Shape::from(())))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> candle_core::Result<Option<Tensor>> {
        Ok(Some(self.0.clone()))
    }
}

fn run(block: &Block, x: &Tensor, lengths: Option<&[usize]>) -> Result<Tensor> {
    block.forward_padded(x, lengths, &mut ())?.context("a forward pass without a tap was stopped")
}

/// Gradients of all parameters, summed over batches. One that never appeared is absent.
pub struct Gradients {
    blocks: Vec<Vec<Option<Tensor>>>,
}

impl Gradients {
    /// Nothing yet.
    pub fn new(student: &dyn Student) -> Self {
        Self { blocks: (0..student.blocks()).map(|i| vec![None; student.parameters(i).len()]).collect() }
    }

    /// Adds `part` to the gradient of parameter `slot` of block `index`.
    pub fn add(&mut self, index: usize, slot: usize, part: Tensor) -> Result<()> {
        let sum = &mut self.blocks[index][slot];
        *sum = Some(match sum.take() {
            Some(sum) => (sum + part)?.detach(),
            None => part.detach(),
        });
        Ok(())
    }

    /// √ Σ g² over everything.
    pub fn norm(&self) -> Result<f64> {
        let mut sum = 0.0;
        for gradient in self.blocks.iter().flatten().flatten() {
            sum += f64::from(gradient.sqr()?.sum_all()?.to_scalar::<f32>()?);
        }
        Ok(sum.sqrt())
    }

    /// Scales everything down so that the norm is at most `limit`, and returns the norm before.
    pub fn clip(&mut self, limit: f64) -> Result<f64> {
        let norm = self.norm()?;
        let scale = limit / (norm + 1e-6);
        if scale < 1.0 {
            for gradient in self.blocks.iter_mut().flatten().flatten() {
                *gradient = (&*gradient * scale)?;
            }
        }
        Ok(norm)
    }

    /// The gradients in block order, and within a block in the order of its parameters.
    pub fn all(self) -> Vec<Option<Tensor>> {
        self.blocks.into_iter().flatten().collect()
    }
}
