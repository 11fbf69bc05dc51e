//! The linears of a checkpoint: dense, as factors, or as parts of a matrix.

use super::super::needed::Form;
use super::super::spec::LinearSpec;
use super::{Described, Verification};

impl Described {
    fn shape(&self, name: &str) -> Option<&[usize]> {
        self.source.info(name).map(|info| info.shape.as_slice())
    }

    fn is_float(&self, name: &str) -> bool {
        self.source.info(name).is_some_and(|info| info.is_float())
    }

    /// The linears that share `matrix`.
    fn parts<'s>(&'s self, matrix: &'s str) -> impl Iterator<Item = &'s LinearSpec> {
        self.layout.linears.iter().filter(move |spec| spec.fused() == Some(matrix))
    }

    /// Whether any part of a shared matrix stands on its own.
    pub(super) fn is_split(&self, matrix: &str) -> bool {
        self.parts(matrix).any(|part| part.form(&self.source) != Form::Matrix)
    }

    /// Once one part stands on its own, all do, and the matrix is gone.
    pub(super) fn check_split(&self, matrix: &str, found: &mut Verification) {
        if self.shape(&format!("{matrix}.weight")).is_some() {
            found.problems.push(format!("{matrix} is stored both whole and in parts."));
        }
    }

    /// A shared matrix and its bias reach as far as the last row of the last part.
    pub(super) fn check_matrix(&self, of: &LinearSpec, found: &mut Verification) {
        let Some(matrix) = of.fused() else { return };
        let rows = self.parts(matrix).map(|part| part.row(part.out - 1) + 1).max().unwrap_or(0);
        let weight = of.weight_name();
        let wanted = if of.transposed() { [of.input, rows] } else { [rows, of.input] };
        self.expect(&weight, &wanted, found);
        if of.bias {
            self.expect(&of.bias_name(&self.source), &[rows], found);
        }
    }

    fn expect(&self, name: &str, wanted: &[usize], found: &mut Verification) {
        match self.shape(name) {
            None => found.problems.push(format!("{name} is missing, and so are parts that stand on their own.")),
            Some(shape) if shape != wanted => {
                found.problems.push(format!("{name} has shape {shape:?}, but config.json asks for {wanted:?}."));
            }
            Some(_) if !self.is_float(name) => {
                found.problems.push(format!("{name} is stored in a dtype that no weights have."));
            }
            Some(_) => {}
        }
    }

    /// A linear that is no part of a whole matrix.
    pub(super) fn check_linear(&self, spec: &LinearSpec, found: &mut Verification) {
        let name = &spec.name;
        match spec.form(&self.source) {
            Form::Factors => {
                let dense = [spec.own_weight_name(), spec.weight_name()];
                if spec.fused().is_none() && dense.iter().any(|name| self.shape(name).is_some())
                    || self.shape(&dense[0]).is_some()
                {
                    found.problems.push(format!("{name} is stored both dense and as factors."));
                }
                self.check_factors(spec, found);
            }
            Form::Own => self.check_dense(spec, &spec.own_weight_name(), false, found),
            Form::Matrix => match spec.fused() {
                Some(matrix) => {
                    let part = name.strip_prefix(matrix).unwrap_or(name).trim_start_matches('.');
                    found.problems.push(format!("{matrix} is stored in parts, but {part} is missing."));
                    return;
                }
                None => self.check_dense(spec, &spec.weight_name(), spec.transposed(), found),
            },
        }
        if spec.bias {
            let bias = spec.bias_name(&self.source);
            let own = bias == format!("{name}.bias");
            match self.shape(&bias) {
                None => found.problems.push(format!("{bias} is missing.")),
                // That of the matrix serves all its parts.
                Some([entries]) if !own && *entries > spec.row(spec.out - 1) => {}
                Some(shape) if own && shape == [spec.out] => {}
                Some(shape) => found
                    .problems
                    .push(format!("{bias} has shape {shape:?}, but the layer has [{}] outputs.", spec.out)),
            }
        }
    }

    fn check_dense(&self, spec: &LinearSpec, weight: &str, transposed: bool, found: &mut Verification) {
        let name = &spec.name;
        match self.shape(weight) {
            None => found.problems.push(format!("{weight} is missing: it is neither stored dense nor as factors.")),
            Some(&[rows, columns]) => {
                let shape = if transposed { (columns, rows) } else { (rows, columns) };
                self.check_shape(spec, shape, found);
            }
            Some(_) => found.problems.push(format!("{weight} is not a matrix.")),
        }
        if self.shape(weight).is_some() && !self.is_float(weight) {
            found.problems.push(format!("{name} is stored in a dtype that no weights have."));
        }
    }

    fn check_shape(&self, spec: &LinearSpec, shape: (usize, usize), found: &mut Verification) {
        let (name, wanted) = (&spec.name, (spec.out, spec.input));
        if shape != wanted {
            found.problems.push(format!("{name} has shape {shape:?}, but config.json asks for {wanted:?}."));
        }
    }

    fn check_factors(&self, spec: &LinearSpec, found: &mut Verification) {
        let (name, [a_name, b_name]) = (&spec.name, spec.factor_names());
        let (a, b) = match (self.shape(&a_name), self.shape(&b_name)) {
            (Some(a), Some(b)) => (a, b),
            (a, _) => {
                let (there, gone) = if a.is_some() { ("a", "b") } else { ("b", "a") };
                found.problems.push(format!("{name} has factor {there} but lacks factor {gone}."));
                return;
            }
        };
        found.factorised += 1;
        found.dense -= usize::from(a.len() == 2) + usize::from(b.len() == 2);
        let (&[rank, input], &[out, columns]) = (a, b) else {
            for (name, _) in [(&a_name, a), (&b_name, b)].into_iter().filter(|(_, shape)| shape.len() != 2) {
                found.problems.push(format!("{name} is not a matrix."));
            }
            return;
        };
        if rank != columns {
            found.problems.push(format!("The factors of {name} disagree on the rank: {rank} in a, {columns} in b."));
            return;
        }
        if rank == 0 {
            found.problems.push(format!("{name} has factors of rank 0."));
        } else if rank * (out + input) >= out * input {
            found.problems.push(format!(
                "{name} has rank {rank}, which is not below break-even for shape ({out}, {input}): dense would be smaller."
            ));
        }
        self.check_shape(spec, (out, input), found);
        for name in [a_name, b_name].iter().filter(|name| !self.is_float(name)) {
            found.problems.push(format!("{name} is stored in a dtype that no weights have."));
        }
    }
}
