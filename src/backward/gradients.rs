//! Gradients of everything that is trained.

use super::pass::BlockStack;
use anyhow::Result;
use candle_core::Tensor;

/// Gradients of all parameters, summed over batches. One that never appeared is absent.
pub struct Gradients {
    blocks: Vec<Vec<Option<Tensor>>>,
}

impl Gradients {
    /// Nothing yet.
    pub fn new(stack: &dyn BlockStack) -> Self {
        Self { blocks: (0..stack.blocks()).map(|i| vec![None; stack.parameters(i).len()]).collect() }
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
        let square = |gradient: &Tensor| gradient.sqr()?.sum_all();
        let squares = self.blocks.iter().flatten().flatten().map(square).collect::<candle_core::Result<Vec<_>>>()?;
        if squares.is_empty() {
            return Ok(0.0);
        }
        // A device is waited for once.
        Ok(Tensor::stack(&squares, 0)?.to_vec1::<f32>()?.into_iter().map(f64::from).sum::<f64>().sqrt())
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
