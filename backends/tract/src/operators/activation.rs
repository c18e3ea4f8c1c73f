//! Functions of the gates of recurrent nets.

use tract_onnx::pb::NodeProto;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;

/// A function of one value. Parameters are kept as bits, so that it can be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Activation {
    Sigmoid,
    Tanh,
    Relu,
    Softsign,
    Softplus,
    Affine { alpha: u32, beta: u32 },
    LeakyRelu { alpha: u32 },
    ThresholdedRelu { alpha: u32 },
    ScaledTanh { alpha: u32, beta: u32 },
    HardSigmoid { alpha: u32, beta: u32 },
    Elu { alpha: u32 },
}

impl Activation {
    /// The function at a value; of what is no number, none.
    pub(super) fn at(self, x: f32) -> f32 {
        let f = f32::from_bits;
        match self {
            Self::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Self::Tanh => x.tanh(),
            Self::Relu => {
                if x < 0.0 {
                    0.0
                } else {
                    x
                }
            }
            Self::Softsign => x / (1.0 + x.abs()),
            Self::Softplus => {
                if x > 0.0 {
                    x + (-x).exp().ln_1p()
                } else {
                    x.exp().ln_1p()
                }
            }
            Self::Affine { alpha, beta } => f(alpha) * x + f(beta),
            Self::LeakyRelu { alpha } => {
                if x < 0.0 {
                    f(alpha) * x
                } else {
                    x
                }
            }
            Self::ThresholdedRelu { alpha } => {
                if x <= f(alpha) {
                    0.0
                } else {
                    x
                }
            }
            Self::ScaledTanh { alpha, beta } => f(alpha) * (f(beta) * x).tanh(),
            Self::HardSigmoid { alpha, beta } => (f(alpha) * x + f(beta)).clamp(0.0, 1.0),
            Self::Elu { alpha } => {
                if x < 0.0 {
                    f(alpha) * x.exp_m1()
                } else {
                    x
                }
            }
        }
    }
}

/// Functions of a node: those that it names, or the usual ones of a net that has so many for a direction.
/// Parameters are given in turn to those functions that take some. Where the definition has no usual value
/// of a parameter, or ONNX Runtime has another, it must be given.
pub(super) fn of(node: &NodeProto, count: usize) -> TractResult<Vec<Activation>> {
    let find = |name: &str| node.attribute.iter().find(|attribute| attribute.name == name);
    let floats = |name: &str| find(name).map_or_else(Vec::new, |found| found.floats.clone());
    let names: Vec<String> = match find("activations") {
        Some(found) if !found.strings.is_empty() => {
            found.strings.iter().map(|name| String::from_utf8_lossy(name).to_lowercase()).collect()
        }
        _ => {
            let usual: &[&str] = match count {
                3 => &["sigmoid", "tanh", "tanh"],
                2 => &["sigmoid", "tanh"],
                _ => &["tanh"],
            };
            let sides =
                if find("direction").is_some_and(|d| d.s == b"bidirectional") { 2 } else { 1 };
            usual.repeat(sides).into_iter().map(str::to_owned).collect()
        }
    };
    let (alphas, betas) = (floats("activation_alpha"), floats("activation_beta"));
    let (mut alphas, mut betas) = (alphas.into_iter(), betas.into_iter());
    let mut made = Vec::new();
    for name in &names {
        let needed = match name.as_str() {
            "affine" | "scaledtanh" => (1, 1),
            "thresholdedrelu" => (1, 0),
            _ => (0, 0),
        };
        ensure!(
            (alphas.len(), betas.len()) >= needed && betas.len() >= needed.1,
            "expected activation_alpha and activation_beta for the function {name}, found none"
        );
        let mut alpha = |usual: f32| alphas.next().unwrap_or(usual).to_bits();
        let mut beta = |usual: f32| betas.next().unwrap_or(usual).to_bits();
        made.push(match name.as_str() {
            "sigmoid" => Activation::Sigmoid,
            "tanh" => Activation::Tanh,
            "relu" => Activation::Relu,
            "softsign" => Activation::Softsign,
            "softplus" => Activation::Softplus,
            "affine" => Activation::Affine { alpha: alpha(1.0), beta: beta(0.0) },
            "leakyrelu" => Activation::LeakyRelu { alpha: alpha(0.01) },
            "thresholdedrelu" => Activation::ThresholdedRelu { alpha: alpha(1.0) },
            "scaledtanh" => Activation::ScaledTanh { alpha: alpha(1.0), beta: beta(1.0) },
            "hardsigmoid" => Activation::HardSigmoid { alpha: alpha(0.2), beta: beta(0.5) },
            "elu" => Activation::Elu { alpha: alpha(1.0) },
            other => bail!("expected a function of a recurrent net, found {other}"),
        });
    }
    Ok(made)
}
