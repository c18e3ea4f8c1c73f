//! Arithmetic speed of the kernels on this machine, in billions of operations a second.

use forebay_kernels::dense::{Convolution, Geometry, Product};
use forebay_kernels::depthwise::Depthwise;
use std::time::Instant;

fn measure(name: &str, operations: usize, mut run: impl FnMut()) {
    run();
    let mut best = f64::INFINITY;
    for _ in 0..30 {
        let started = Instant::now();
        run();
        best = best.min(started.elapsed().as_secs_f64());
    }
    #[allow(clippy::cast_precision_loss, reason = "a report")]
    let speed = operations as f64 / best / 1e9;
    eprintln!("{name:<40} {speed:8.1} Gop/s {:8.1} us", best * 1e6);
}

/// A convolution of square images with the padding that keeps their size at a stride of 1.
fn square(
    size: usize,
    kernel: usize,
    stride: usize,
    channels: [usize; 2],
    groups: usize,
) -> Geometry {
    Geometry {
        input: [size; 2],
        kernel: [kernel; 2],
        stride: [stride; 2],
        dilation: [1; 2],
        before: [kernel / 2; 2],
        after: [kernel / 2; 2],
        channels_in: channels[0],
        channels_out: channels[1],
        groups,
    }
}

fn main() {
    eprintln!("vector unit: {}", forebay_kernels::Unit::in_use());
    for (m, k, n) in [
        (1, 384, 1536),
        (8, 384, 384),
        (128, 384, 384),
        (128, 384, 1536),
        (128, 1536, 384),
        (1024, 384, 1536),
        (9216, 16, 64),
        (576, 64, 16),
        (18, 200, 200),
    ] {
        let product = Product::new(k, n, |_, _| 0.5, &[]);
        let (x, mut y) = (vec![1.0; m * k], vec![0.0; m * n]);
        measure(&format!("product {m} x {k} x {n}"), 2 * m * k * n, || {
            product.run(&x, &mut y, &[], &[]);
        });
    }
    for (size, kernel, c_in, c_out, stride) in
        [(80, 3, 64, 64, 1), (40, 3, 128, 128, 1), (320, 3, 3, 16, 2), (80, 1, 64, 64, 1)]
    {
        let g = square(size, kernel, stride, [c_in, c_out], 1);
        let weights = vec![0.5; c_in * c_out * kernel * kernel];
        let Some(conv) = Convolution::new(g, &weights, &[]) else { continue };
        let [h, w] = conv.output();
        let (x, mut y) = (vec![1.0; size * size * c_in], vec![0.0; h * w * c_out]);
        measure(
            &format!("conv {size} k{kernel} s{stride} {c_in}->{c_out}"),
            2 * h * w * c_out * c_in * kernel * kernel,
            || conv.run(&x, &mut y, &[], &[]),
        );
    }
    for (size, kernel, c, stride) in [
        (80, 3, 64, 1),
        (80, 5, 64, 1),
        (40, 5, 200, 1),
        (80, 3, 64, 2),
        (6, 5, 200, 1),
        (24, 3, 24, 1),
    ] {
        let g = square(size, kernel, stride, [c, c], c);
        let Some(conv) = Depthwise::new(g, &vec![0.5; c * kernel * kernel], &[]) else { continue };
        let [h, w] = conv.output();
        let (x, mut y) = (vec![1.0; size * size * c], vec![0.0; h * w * c]);
        measure(
            &format!("depthwise {size} k{kernel} s{stride} {c}"),
            2 * h * w * c * kernel * kernel,
            || conv.run(&x, &mut y, &[], &[]),
        );
    }
}
