//! The two passes. With y a block's output and g the gradient on it, ∂(Σ y ∘ g) is the vector-Jacobian product that
//! backpropagation needs.

use super::gradients::Gradients;
use crate::model::{Block, Model, OutputGradients, Role, Tap};
use anyhow::{Context, Result};
use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor, Var};
use std::ops::Range;

/// A model, block by block.
pub trait BlockStack {
    /// Number of blocks.
    fn blocks(&self) -> usize;

    /// Block `index`, made of its parameters or of tensors computed from them, and of frozen tensors, which must not be
    /// variables.
    fn block(&self, index: usize) -> Result<Block<'_>>;

    /// What is trained in block `index`. The order matters: that of [`Gradients::all`] follows from it.
    fn parameters(&self, index: usize) -> Vec<Var>;
}

/// A model as it is, of which nothing is trained.
impl BlockStack for Model {
    fn blocks(&self) -> usize {
        Model::blocks(self)
    }

    fn block(&self, index: usize) -> Result<Block<'_>> {
        Model::block(self, index)
    }

    fn parameters(&self, _: usize) -> Vec<Var> {
        Vec::new()
    }
}

/// Blocks that follow one another, and what enters the first of them.
#[derive(Clone)]
pub struct Segment<'a> {
    /// Which blocks.
    pub blocks: Range<usize>,
    /// (sequences, t, hidden)
    pub input: &'a Tensor,
    /// Tokens of each sequence, where some are padded behind them.
    pub lengths: Option<&'a [usize]>,
}

/// Takes the states that leave a segment, (sequences, t, hidden), to a loss and its gradient on them.
pub type EndLoss<'a> = dyn Fn(&Tensor) -> Result<(f64, Tensor)> + 'a;

/// Sees, on the way back through a segment, what enters the linears of a block ([`Tap::see`]), then the gradients on what
/// leaves them, then the same of the block in front of it. A [`Flow::Stop`](crate::model::Flow::Stop) is an error there.
pub trait GradientTap: Tap {
    /// What follows is of block `index`.
    fn enter(&mut self, index: usize) -> Result<()>;

    /// The gradient on the output of the linear `role`, (…, out), its rows in the order of those that entered the linear's
    /// site. A linear that nothing passed through, as of an expert to which no token went, has none.
    fn see_gradient(&mut self, role: Role, gradient: &Tensor) -> Result<()>;
}

/// What a forward pass leaves for the backward pass.
pub struct Forward {
    /// The first block.
    first: usize,
    /// What entered each block, (sequences, t, hidden).
    inputs: Vec<Tensor>,
    /// What left the last one.
    pub output: Tensor,
    lengths: Option<Vec<usize>>,
}

/// The loss that `end` makes of what leaves `segment`. Its gradients on the parameters of the segment's blocks are added to
/// `sums`, unless it is not finite: then there are none.
///
/// With a `tap`, all blocks of the segment are shown to it; without, those in front of the first that has parameters are not
/// run again.
pub fn loss_and_gradients(
    stack: &dyn BlockStack,
    segment: Segment,
    end: &EndLoss,
    tap: Option<&mut dyn GradientTap>,
    sums: &mut Gradients,
) -> Result<f64> {
    let pass = forward(stack, segment)?;
    let (loss, gradient) = end(&pass.output)?;
    if loss.is_finite() {
        backward(stack, pass, gradient, tap, sums)?;
    }
    Ok(loss)
}

/// Runs `segment`.
pub fn forward(stack: &dyn BlockStack, segment: Segment) -> Result<Forward> {
    let (first, lengths) = (segment.blocks.start, segment.lengths);
    let mut inputs = Vec::with_capacity(segment.blocks.len());
    let mut output = segment.input.detach();
    for index in segment.blocks {
        let mut block = stack.block(index)?;
        // Nobody asks this pass for gradients.
        block.map_weights(&mut |_, weight| Ok(weight.detach()))?;
        block.leave_unchecked();
        let y = run(&block, &output, lengths, &mut ())?.detach();
        inputs.push(std::mem::replace(&mut output, y));
    }
    Ok(Forward { first, inputs, output, lengths: lengths.map(<[usize]>::to_vec) })
}

/// Takes `gradient`, that on the output of `pass`, back through the blocks and adds to `sums` what it leaves at their
/// parameters. Returns the gradient on what entered the block at which this ends: the first of the pass where there is a
/// `tap`, otherwise the first that has parameters.
pub fn backward(
    stack: &dyn BlockStack,
    pass: Forward,
    gradient: Tensor,
    mut tap: Option<&mut dyn GradientTap>,
    sums: &mut Gradients,
) -> Result<Tensor> {
    let end = pass.first + pass.inputs.len();
    let is_wanted = |&index: &usize| tap.is_some() || !stack.parameters(index).is_empty();
    let first = (pass.first..end).find(is_wanted).unwrap_or(end);
    let mut gradient = gradient.detach();
    for (index, input) in (pass.first..end).zip(pass.inputs).skip(first - pass.first).rev() {
        let input = Var::from_tensor(&input)?;
        let mut block = stack.block(index)?;
        let outputs = OutputGradients::default();
        let y = match &mut tap {
            Some(tap) => {
                tap.enter(index)?;
                block.watch_outputs(outputs.clone());
                run(&block, &input, pass.lengths.as_deref(), &mut **tap)?
            }
            None => run(&block, &input, pass.lengths.as_deref(), &mut ())?,
        };
        let mut graph = gradients_of(&y, &gradient)?;
        for (role, gradient) in outputs.take() {
            tap.as_mut().map_or(Ok(()), |tap| tap.see_gradient(role, &gradient))?;
        }
        for (slot, parameter) in stack.parameters(index).iter().enumerate() {
            if let Some(part) = graph.remove(parameter) {
                sums.add(index, slot, part)?;
            }
        }
        gradient = graph.remove(&input).with_context(|| format!("block {index} passes no gradient on"))?.detach();
    }
    Ok(gradient)
}

/// The gradients of Σ y ∘ `gradient`.
pub(super) fn gradients_of(y: &Tensor, gradient: &Tensor) -> Result<GradStore> {
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

fn run(block: &Block, x: &Tensor, lengths: Option<&[usize]>, tap: &mut dyn Tap) -> Result<Tensor> {
    block.forward_padded(x, lengths, tap)?.context("the tap stopped a pass that has to reach its end")
}
