//! The boundary: tract as one engine among others.
//!
//! The names of builds and the findings of an earlier load come as text, and become this engine's own
//! types here. All else is handed through to [`Model`].

use crate::build::Build;
use crate::model::Model;
use crate::{Curve, Fallback, Form, LoadError, RunError, VectorUnit, Watch};
use forebay_engine::{Device, Engine, LoadOptions, ModelFile, Profile};
use forebay_protocol::oip::{Tensor, TensorMetadata};
use std::sync::Arc;
use std::time::Duration;

/// Runs ONNX models on the CPU.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tract;

impl Engine for Tract {
    fn name(&self) -> &'static str {
        "tract"
    }

    fn platform(&self) -> &'static str {
        "onnx"
    }

    fn files(&self) -> &'static [&'static str] {
        &["model.onnx"]
    }

    fn device(&self) -> Device {
        Device::Cpu
    }

    fn builds(&self) -> &'static [&'static str] {
        const NAMES: [&str; Build::ALL.len()] =
            [Build::ALL[0].as_str(), Build::ALL[1].as_str(), Build::ALL[2].as_str()];
        &NAMES
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        vec![("vector_unit", VectorUnit::in_use().to_string())]
    }

    fn whole(
        &self,
        bytes: Vec<u8>,
        beside: &dyn Fn(&str) -> Result<Vec<u8>, forebay_engine::LoadError>,
    ) -> Result<Vec<u8>, forebay_engine::LoadError> {
        crate::external::whole(bytes, beside)
    }

    fn outline(
        &self,
        file: ModelFile<'_>,
    ) -> Result<Vec<(&'static str, String)>, forebay_engine::LoadError> {
        Ok(crate::outline::outline(file.bytes)?)
    }

    fn load(
        &self,
        file: ModelFile<'_>,
        options: &LoadOptions,
        watch: &dyn Watch,
    ) -> Result<Arc<dyn forebay_engine::Model>, forebay_engine::LoadError> {
        let build = |name: &str| {
            Build::ALL.into_iter().find(|build| build.as_str() == name).ok_or_else(|| {
                let all = Build::ALL.map(Build::as_str).join(", ");
                let text = format!("expected a build of {all}, found \"{name}\"");
                forebay_engine::LoadError::Refused(text)
            })
        };
        // It may be of another release: then everything is measured again.
        let findings = |profile: &Profile| serde_json::from_str(&profile.0).ok();
        let options = options.parse(build, findings)?;
        Ok(Arc::new(Model::load_watched(file.bytes, &options, watch)?))
    }
}

impl From<LoadError> for forebay_engine::LoadError {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::Cancelled => Self::Cancelled,
            error @ (LoadError::NotOnnx(_)
            | LoadError::ExternalData(_)
            | LoadError::Override { .. }) => Self::Refused(error.to_string()),
            error => Self::Unsupported(error.to_string()),
        }
    }
}

impl forebay_engine::Model for Model {
    fn inputs(&self) -> &[TensorMetadata] {
        Model::inputs(self)
    }

    fn outputs(&self) -> &[TensorMetadata] {
        Model::outputs(self)
    }

    fn max_batch(&self) -> Option<usize> {
        Model::max_batch(self)
    }

    fn unbatched(&self) -> Option<&str> {
        Model::unbatched(self)
    }

    fn notes(&self) -> &[String] {
        &self.interface.notes
    }

    fn closed(&self) -> Option<&str> {
        Model::closed(self)
    }

    fn form(&self, inputs: &[Tensor]) -> Result<(usize, Form), RunError> {
        Model::form(self, inputs)
    }

    fn run(
        &self,
        requests: &[&[Tensor]],
        most: usize,
        watch: &dyn Watch,
    ) -> Result<Vec<Vec<Tensor>>, RunError> {
        Model::run(self, requests, most, watch)
    }

    fn curve(&self) -> &Curve {
        Model::curve(self)
    }

    fn expected(&self, form: &Form, rows: usize) -> f64 {
        Model::expected(self, form, rows)
    }

    fn careful(&self, form: &Form, rows: usize) -> f64 {
        Model::careful(self, form, rows)
    }

    fn least(&self, form: &Form) -> Duration {
        Model::least(self, form)
    }

    fn grain(&self) -> Duration {
        Model::grain(self)
    }

    fn memory(&self) -> usize {
        Model::memory(self)
    }

    fn memory_changes(&self) -> u64 {
        Model::memory_changes(self)
    }

    fn release(&self, bytes: usize) {
        Model::release(self, bytes);
    }

    fn build(&self) -> &'static str {
        Model::build(self).as_str()
    }

    fn compared(&self) -> Vec<(&'static str, f64)> {
        Model::compared(self).iter().map(|(build, seconds)| (build.as_str(), *seconds)).collect()
    }

    fn phases(&self) -> Vec<(&'static str, Duration)> {
        Model::phases(self).to_vec()
    }

    fn compilations(&self) -> (u64, Duration) {
        Model::compilations(self)
    }

    fn fallbacks(&self) -> u64 {
        Model::fallbacks(self)
    }

    fn take_fallback(&self) -> Option<Fallback> {
        Model::take_fallback(self)
    }

    fn profile(&self) -> Profile {
        // Numbers and short texts: they always become text.
        Profile(serde_json::to_string(&Model::profile(self)).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::path::Path;

    fn load(
        options: &LoadOptions,
        watch: &dyn Watch,
    ) -> Result<Arc<dyn forebay_engine::Model>, forebay_engine::LoadError> {
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let bytes = std::fs::read(models.join("worker/tests/models/arith/1/model.onnx")).unwrap();
        let file = ModelFile { name: "model.onnx", bytes: &bytes };
        Tract.load(file, options, watch)
    }

    #[test]
    fn a_profile_that_went_out_as_text_comes_back_and_spares_the_measuring() {
        let build = Some("plain".to_owned());
        let options = LoadOptions { max_batch: 8, build, ..LoadOptions::default() };
        let first = load(&options, &|| false).unwrap();
        let again = LoadOptions { build: None, profile: Some(first.profile()), ..options };
        let second = load(&again, &|| false).unwrap();
        assert_eq!((second.build(), second.max_batch()), ("plain", Some(8)));
        assert_eq!(second.curve().best(), first.curve().best());
        assert_eq!(second.grain(), first.grain());
        let foreign = LoadOptions { profile: Some(Profile("another's".to_owned())), ..again };
        assert_eq!(load(&foreign, &|| false).unwrap().max_batch(), Some(8));
    }

    #[test]
    fn a_build_that_there_is_not_is_refused_and_a_load_that_nobody_wants_ends() {
        let options = LoadOptions { build: Some("fast".to_owned()), ..LoadOptions::default() };
        let text = load(&options, &|| false).unwrap_err().to_string();
        assert_eq!(text, "expected a build of plain, channels-last, own, found \"fast\"");
        let asked = std::cell::Cell::new(0);
        for stop_at in 0..3 {
            asked.set(0);
            let watch = || asked.replace(asked.get() + 1) == stop_at;
            let error = load(&LoadOptions::default(), &watch).unwrap_err();
            assert_eq!(error, forebay_engine::LoadError::Cancelled, "{stop_at}");
            assert_eq!(asked.get(), stop_at + 1);
        }
    }
}
