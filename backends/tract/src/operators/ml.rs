//! Operators of the domain `ai.onnx.ml`: what exporters of scikit-learn, XGBoost and LightGBM write.

mod encoders;
mod features;
mod linear;
mod scores;
mod svm;
mod text;
mod trees;

pub(crate) use text::TOKENIZER;

use tract_onnx::Onnx;

/// Registers all of them.
pub(super) fn register(framework: &mut Onnx) {
    let operators = &mut framework.op_register;
    operators.insert("ArrayFeatureExtractor", features::extractor);
    operators.insert("Binarizer", features::binarizer);
    operators.insert("CategoryMapper", encoders::category);
    operators.insert("FeatureVectorizer", features::vectorizer);
    operators.insert("Imputer", features::imputer);
    operators.insert("LabelEncoder", encoders::label);
    operators.insert("LinearClassifier", linear::classifier);
    operators.insert("LinearRegressor", linear::regressor);
    operators.insert("Normalizer", features::normalizer);
    operators.insert("OneHotEncoder", encoders::one_hot);
    operators.insert("SVMClassifier", svm::classifier);
    operators.insert("SVMRegressor", svm::regressor);
    operators.insert("Scaler", features::scaler);
    operators.insert("StringNormalizer", text::normalizer);
    operators.insert("TfIdfVectorizer", text::vectorizer);
    operators.insert("TreeEnsemble", trees::ensemble);
    operators.insert("TreeEnsembleClassifier", trees::classifier);
    operators.insert("TreeEnsembleRegressor", trees::regressor);
}
