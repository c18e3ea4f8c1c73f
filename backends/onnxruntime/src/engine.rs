//! The boundary: ONNX Runtime as one engine among others.

use crate::library::Library;
use crate::model::Model;
use crate::stop::Stopper;
use crate::{file, warm_up};
use forebay_engine::{Device, Engine, LoadError, LoadOptions, ModelFile, Watch};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// Runs ONNX models with ONNX Runtime, on the calling thread.
#[derive(Debug)]
pub struct OnnxRuntime {
    library: Library,
    stopper: Arc<Stopper>,
}

impl OnnxRuntime {
    /// With this library, which is opened when a model is loaded.
    pub fn new(library: Library) -> Self {
        Self { library, stopper: Arc::default() }
    }
}

impl Engine for OnnxRuntime {
    fn name(&self) -> &'static str {
        "onnxruntime"
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

    fn missing(&self) -> Option<String> {
        self.library.missing()
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        match &self.library {
            Library::At(path) => vec![("library", path.display().to_string())],
            Library::Off | Library::Absent => Vec::new(),
        }
    }

    fn whole(
        &self,
        bytes: Vec<u8>,
        beside: &dyn Fn(&str) -> Result<Vec<u8>, LoadError>,
    ) -> Result<Vec<u8>, LoadError> {
        forebay_tract::facts::whole(bytes, beside)
    }

    fn outline(&self, file: ModelFile<'_>) -> Result<Vec<(&'static str, String)>, LoadError> {
        Ok(forebay_tract::facts::outline(file.bytes)?)
    }

    fn load(
        &self,
        file: ModelFile<'_>,
        options: &LoadOptions,
        watch: &dyn Watch,
    ) -> Result<Arc<dyn forebay_engine::Model>, LoadError> {
        file::check_weights(file.bytes).map_err(LoadError::Refused)?;
        let opened = self.library.open().map_err(LoadError::Unsupported)?;
        let before = warm_up::resident();
        let load = || {
            let model = Model::open(file.bytes, options, &self.stopper, opened)?;
            warm_up::warm_up(model, (file.bytes, before), options, watch)
        };
        // A mistake of the binding, or of the library, must not cost more than this model.
        let loaded = catch_unwind(AssertUnwindSafe(load));
        let loaded = loaded.unwrap_or_else(|_| {
            Err(LoadError::Unsupported("ONNX Runtime's binding panicked".to_owned()))
        });
        Ok(Arc::new(loaded?))
    }
}
