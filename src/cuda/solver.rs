//! cuSOLVER: decompositions in f64 on a GPU. Products are cuBLAS's, through candle.

use super::libraries;
use crate::linalg::{Operand, Side, Solver};
use anyhow::{Context, Result, bail, ensure};
use candle_core::cuda_backend::cudarc::driver::sys::CUstream;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaStream, DevicePtrMut};
use candle_core::cuda_backend::{CudaDevice, WrapErr};
use candle_core::{Device, Storage, Tensor};
use libloading::Library;
use std::ffi::{c_int, c_void};
use std::sync::{Arc, Mutex, PoisonError};

type Handle = *mut c_void;
/// 0 if all is well.
type Status = c_int;

/// `CUSOLVER_EIG_MODE_VECTOR`
const VECTORS: c_int = 1;
/// `CUBLAS_FILL_MODE_LOWER`
const LOWER: c_int = 0;

/// The functions by the signatures that they have in CUDA 13's `cusolverDn.h`.
struct Functions {
    create: unsafe extern "C" fn(*mut Handle) -> Status,
    set_stream: unsafe extern "C" fn(Handle, CUstream) -> Status,
    syevd_room: unsafe extern "C" fn(Handle, c_int, c_int, c_int, *const f64, c_int, *const f64, *mut c_int) -> Status,
    syevd: unsafe extern "C" fn(
        Handle,
        c_int,
        c_int,
        c_int,
        *mut f64,
        c_int,
        *mut f64,
        *mut f64,
        c_int,
        *mut c_int,
    ) -> Status,
    geqrf_room: unsafe extern "C" fn(Handle, c_int, c_int, *mut f64, c_int, *mut c_int) -> Status,
    geqrf: unsafe extern "C" fn(Handle, c_int, c_int, *mut f64, c_int, *mut f64, *mut f64, c_int, *mut c_int) -> Status,
    orgqr_room: unsafe extern "C" fn(Handle, c_int, c_int, c_int, *const f64, c_int, *const f64, *mut c_int) -> Status,
    orgqr: unsafe extern "C" fn(
        Handle,
        c_int,
        c_int,
        c_int,
        *mut f64,
        c_int,
        *const f64,
        *mut f64,
        c_int,
        *mut c_int,
    ) -> Status,
}

impl Functions {
    fn of(library: &Library) -> Result<Self> {
        fn function<T: Copy>(library: &Library, name: &str) -> Result<T> {
            // SAFETY: the fields above have the functions' signatures.
            let function = unsafe { library.get::<T>(name) };
            Ok(*function.with_context(|| format!("cuSOLVER has no function {name}"))?)
        }
        Ok(Self {
            create: function(library, "cusolverDnCreate")?,
            set_stream: function(library, "cusolverDnSetStream")?,
            syevd_room: function(library, "cusolverDnDsyevd_bufferSize")?,
            syevd: function(library, "cusolverDnDsyevd")?,
            geqrf_room: function(library, "cusolverDnDgeqrf_bufferSize")?,
            geqrf: function(library, "cusolverDnDgeqrf")?,
            orgqr_room: function(library, "cusolverDnDorgqr_bufferSize")?,
            orgqr: function(library, "cusolverDnDorgqr")?,
        })
    }
}

/// cuSOLVER on one GPU. One thread at a time: there is one stream, so there is nothing to gain by more.
pub struct CuSolver {
    functions: Functions,
    handle: Mutex<HandleOfOne>,
    gpu: CudaDevice,
    stream: Arc<CudaStream>,
}

/// A handle that is used behind a lock.
struct HandleOfOne(Handle);

// SAFETY: cuSOLVER's handles may wander between threads, as long as one uses them at a time.
unsafe impl Send for HandleOfOne {}

impl CuSolver {
    /// On the GPU and the stream that tensors of `gpu` live on.
    ///
    /// # Errors
    /// Says which library or function is missing, or what cuSOLVER answers.
    pub fn open(gpu: &CudaDevice) -> Result<Self> {
        // The library stays open as long as the process lives, and so does the handle.
        let library: &'static Library = Box::leak(Box::new(libraries::solver()?));
        let functions = Functions::of(library)?;
        let stream = gpu.cuda_stream();
        stream.context().bind_to_thread().w()?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: the handle is written where the reference points.
        check("cusolverDnCreate", unsafe { (functions.create)(&mut handle) })?;
        // SAFETY: the handle was just made, and the stream lives as long as the GPU is open.
        check("cusolverDnSetStream", unsafe { (functions.set_stream)(handle, stream.cu_stream()) })?;
        Ok(Self { functions, handle: Mutex::new(HandleOfOne(handle)), gpu: gpu.clone(), stream })
    }

    /// Room for so many numbers, or one if that is none.
    fn room(&self, numbers: c_int) -> Result<CudaSlice<f64>> {
        // SAFETY: cuSOLVER writes what it reads of its workspace, and its results before they are read.
        Ok(unsafe { self.gpu.alloc::<f64>(usize::try_from(numbers)?.max(1)) }?)
    }

    /// Waits for what was asked for, and refuses what cuSOLVER could not do.
    fn finish(&self, name: &str, info: &CudaSlice<c_int>) -> Result<()> {
        let mut code = [0];
        self.stream.memcpy_dtoh(info, &mut code).w()?;
        self.stream.synchronize().w()?;
        match code[0] {
            0 => Ok(()),
            code if code < 0 => bail!("{name} refuses argument {}", -code),
            code => bail!("{name} does not converge ({code})"),
        }
    }

    fn download(&self, from: &CudaSlice<f64>, to: &mut [f64]) -> Result<()> {
        self.stream.memcpy_dtoh(from, to).w()?;
        Ok(self.stream.synchronize().w()?)
    }
}

fn check(name: &str, status: Status) -> Result<()> {
    // The codes are those of cusolverStatus_t.
    match status {
        0 => Ok(()),
        2 => bail!("{name}: out of memory"),
        code => bail!("{name} answers {code}"),
    }
}

/// A size as cuSOLVER counts.
fn size(n: usize) -> Result<c_int> {
    c_int::try_from(n).with_context(|| format!("{n} is more than cuSOLVER can count"))
}

/// Where a GPU has these numbers. There is one stream, so nothing has to be waited for.
fn address<T>(numbers: &mut CudaSlice<T>, stream: &Arc<CudaStream>) -> *mut T {
    numbers.device_ptr_mut(stream).0 as *mut T
}

impl Solver for CuSolver {
    fn evd(&self, n: usize, a: &mut [f64]) -> Result<Vec<f64>> {
        let side = size(n)?;
        // The workspace of 2 n² is counted in numbers of 32 bits.
        ensure!(n <= 30_000, "cuSOLVER's syevd takes no matrix of {n} rows");
        let handle = self.handle.lock().unwrap_or_else(PoisonError::into_inner);
        let (f, stream) = (&self.functions, &self.stream);
        stream.context().bind_to_thread().w()?;
        let mut matrix = stream.clone_htod(&*a).w()?;
        let (mut values, mut info) = (self.room(side)?, self.gpu.alloc_zeros::<c_int>(1)?);
        let (to_a, to_values) = (address(&mut matrix, stream), address(&mut values, stream));
        let mut len = 0;
        // SAFETY: the matrix is (n, n) and there are n values; neither is looked at.
        let status = unsafe { (f.syevd_room)(handle.0, VECTORS, LOWER, side, to_a, side, to_values, &mut len) };
        check("cusolverDnDsyevd_bufferSize", status)?;
        let mut work = self.room(len)?;
        let (to_work, to_info) = (address(&mut work, stream), address(&mut info, stream));
        // SAFETY: as above, with a workspace of the length that was asked for; all of it lives until `finish`.
        let status = unsafe { (f.syevd)(handle.0, VECTORS, LOWER, side, to_a, side, to_values, to_work, len, to_info) };
        check("cusolverDnDsyevd", status)?;
        self.finish("cusolverDnDsyevd", &info)?;
        let mut found = vec![0.0; n];
        self.download(&values, &mut found)?;
        self.download(&matrix, a)?;
        Ok(found)
    }

    fn qr(&self, m: usize, n: usize, a: &mut [f64]) -> Result<Vec<f64>> {
        let (rows, cols) = (size(m)?, size(n)?);
        size(m * n)?;
        let handle = self.handle.lock().unwrap_or_else(PoisonError::into_inner);
        let (f, stream) = (&self.functions, &self.stream);
        stream.context().bind_to_thread().w()?;
        let mut matrix = stream.clone_htod(&*a).w()?;
        let (mut tau, mut info) = (self.room(cols)?, self.gpu.alloc_zeros::<c_int>(1)?);
        let (to_a, to_tau) = (address(&mut matrix, stream), address(&mut tau, stream));
        let (mut first, mut second) = (0, 0);
        // SAFETY: the matrix is (m, n) and there are n reflections; neither is looked at.
        let status = unsafe { (f.geqrf_room)(handle.0, rows, cols, to_a, rows, &mut first) };
        check("cusolverDnDgeqrf_bufferSize", status)?;
        // SAFETY: as above.
        let status = unsafe { (f.orgqr_room)(handle.0, rows, cols, cols, to_a, rows, to_tau, &mut second) };
        check("cusolverDnDorgqr_bufferSize", status)?;
        let len = first.max(second);
        let mut work = self.room(len)?;
        let (to_work, to_info) = (address(&mut work, stream), address(&mut info, stream));
        // SAFETY: as above, with a workspace of the length that was asked for; all of it lives until `finish`.
        let status = unsafe { (f.geqrf)(handle.0, rows, cols, to_a, rows, to_tau, to_work, len, to_info) };
        check("cusolverDnDgeqrf", status)?;
        self.finish("cusolverDnDgeqrf", &info)?;
        self.download(&matrix, a)?;
        // R stands on and above the diagonal of the first n rows.
        let mut r = vec![0.0; n * n];
        for (j, column) in r.chunks_exact_mut(n).enumerate() {
            column[..=j].copy_from_slice(&a[j * m..=j * m + j]);
        }
        // SAFETY: as above; the reflections are those that geqrf has left.
        let status = unsafe { (f.orgqr)(handle.0, rows, cols, cols, to_a, rows, to_tau, to_work, len, to_info) };
        check("cusolverDnDorgqr", status)?;
        self.finish("cusolverDnDorgqr", &info)?;
        self.download(&matrix, a)?;
        Ok(r)
    }

    fn product(&self, a: Operand, b: Operand) -> Result<Vec<f64>> {
        let _turn = self.handle.lock().unwrap_or_else(PoisonError::into_inner);
        let device = Device::Cuda(self.gpu.clone());
        // What lies column by column is the transpose row by row: (a b)ᵀ = bᵀ aᵀ.
        let transpose = |side: Operand| -> Result<Tensor> {
            let stored = Tensor::from_slice(side.numbers, (side.cols, side.rows), &device)?;
            Ok(if side.side == Side::Plain { stored } else { stored.t()? })
        };
        let product = transpose(b)?.matmul(&transpose(a)?)?;
        let mut numbers = vec![0.0; product.elem_count()];
        let (storage, _) = product.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else { bail!("a product left the GPU") };
        self.download(storage.as_cuda_slice::<f64>()?, &mut numbers)?;
        Ok(numbers)
    }
}

#[cfg(test)]
mod tests {
    use crate::calibrate::SiteStats;
    use crate::device::{self, Choice};
    use crate::linalg::{CheckedSolver, Mat, Operand, Qr, Side, Solver, evd_symmetric, solving_with, thin_svd};
    use crate::method::METHODS;

    /// Nothing, said plainly, where there is no GPU.
    fn solver() -> Option<(super::CuSolver, &'static CheckedSolver)> {
        let gpu = Choice::Cuda(0).open(|_| ()).inspect_err(|why| eprintln!("skipped on a GPU: {why}")).ok()?;
        let own = super::CuSolver::open(gpu.as_cuda_device().unwrap());
        let own = own.inspect_err(|why| eprintln!("skipped on a GPU: {why:#}")).ok()?;
        Some((own, device::solver(&gpu, &()).unwrap()))
    }

    fn matrix(rows: usize, cols: usize) -> Mat {
        Mat::from_fn(rows, cols, |i, j| ((i * 7919 + j * 104_729) as f64).sin() * 10f64.powi(j as i32 % 5 - 2))
    }

    fn close(what: &str, found: &Mat, wanted: &Mat, bound: f64) {
        let off = found.sub(wanted).frobenius() / wanted.frobenius();
        assert!(off < bound, "{what}: {off:e}");
    }

    #[test]
    fn decompositions_and_products_are_those_of_the_processor() {
        let Some((own, checked)) = solver() else { return };
        for (m, n) in [(256, 256), (300, 257), (700, 300), (300, 700)] {
            let a = matrix(m, n);
            let gram = a.nt_matmul(&a);
            let of = |solver| {
                solving_with(solver, || {
                    let svd = thin_svd(&a, "test").unwrap();
                    let mut us = svd.u.clone();
                    us.scale_cols(&svd.s);
                    let qr = Qr::new(&a);
                    (evd_symmetric(&gram, "test").unwrap(), us.nt_matmul(&svd.v), svd.s, qr.q_times(&qr.r()))
                })
            };
            let (here, there) = (of(None), of(Some(checked)));
            assert_eq!(checked.take_trouble(), None, "({m}, {n})");
            let largest = here.0.values[0];
            assert!(here.0.values.iter().zip(&there.0.values).all(|(x, y)| (x - y).abs() < 1e-12 * largest));
            assert!(here.2.iter().zip(&there.2).all(|(x, y)| (x - y).abs() < 1e-7 * here.2[0]));
            close("SVD", &there.1, &a, 1e-12);
            close("QR", &there.3, &a, 1e-12);
            let numbers: Vec<f64> = (0..n).flat_map(|j| a.col(j).to_vec()).collect();
            let operand = |side| Operand { rows: m, cols: n, numbers: &numbers, side };
            let product = own.product(operand(Side::Plain), operand(Side::Transposed)).unwrap();
            close("A Aᵀ", &Mat::from_columns(m, m, &product), &gram, 1e-13);
            let product = own.product(operand(Side::Transposed), operand(Side::Plain)).unwrap();
            close("Aᵀ A", &Mat::from_columns(n, n, &product), &a.tn_matmul(&a), 1e-13);
        }
    }

    #[test]
    fn every_method_decomposes_as_on_the_processor() {
        let Some((_, checked)) = solver() else { return };
        for (m, n) in [(320, 320), (600, 300), (300, 600)] {
            let (w, x) = (matrix(m, n), matrix(2 * n, n));
            let stats =
                SiteStats { tokens: 2 * n as u64, gram: x.tn_matmul(&x), sum: vec![0.0; n], heldout: Vec::new() };
            for method in METHODS {
                let name = format!("{} of ({m}, {n})", method.card().name);
                let [here, there] = [None, Some(checked)]
                    .map(|solver| solving_with(solver, || method.decompose(&w, Some(&stats)).unwrap()));
                assert_eq!(checked.take_trouble(), None, "{name}");
                assert!(here.energy.iter().zip(&there.energy).all(|(x, y)| (x - y).abs() < 1e-9 * here.energy[0]));
                // Where the spectrum has a gap, so that the cut is one.
                let gap = |r: &usize| here.energy[*r] < 0.8 * here.energy[r - 1];
                for rank in (1..100).filter(gap).take(5).chain([here.rank()]) {
                    let cut = |d: &crate::method::Decomposition| d.b.col_range(0..rank).matmul(&d.a.row_range(0..rank));
                    close(&name, &cut(&there), &cut(&here), 1e-6);
                }
            }
        }
    }
}
