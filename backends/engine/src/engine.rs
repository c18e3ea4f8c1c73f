//! An engine, and the list of those that a server has.

use crate::{LoadError, LoadOptions, Model, Watch};
use std::fmt::Debug;
use std::sync::Arc;

/// Reads model files, and makes of them what can be run.
pub trait Engine: Debug + Send + Sync {
    /// The word in configurations, metadata and labels: Triton's `backend`.
    fn name(&self) -> &'static str;

    /// The form of the models that it reads: Triton's `platform`, such as `onnx`.
    fn platform(&self) -> &'static str;

    /// Names of files that it can read, in a version's directory; the first that is there is read.
    fn files(&self) -> &'static [&'static str];

    /// The kind of hardware that its models use.
    fn device(&self) -> Device;

    /// Why it can load no model on this machine, and how that is mended; `None` if it can. An engine that is
    /// missing is asked for only by its name.
    fn missing(&self) -> Option<String> {
        None
    }

    /// Words for the forms that it can compile a model to; none if there is no choice.
    fn builds(&self) -> &'static [&'static str] {
        &[]
    }

    /// Facts about the machine, such as its vector unit. Names must be valid metric labels.
    fn facts(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    /// A model's file with what it leaves to files beside it put into it; `beside` reads such a file by its
    /// name, which is all that a model may say of it.
    ///
    /// # Errors
    /// A file is missing, or is not what the model's says.
    fn whole(
        &self,
        bytes: Vec<u8>,
        _beside: &dyn Fn(&str) -> Result<Vec<u8>, LoadError>,
    ) -> Result<Vec<u8>, LoadError> {
        Ok(bytes)
    }

    /// Facts about a file, read without compiling it: what each is, and in words.
    ///
    /// # Errors
    /// The bytes are no model.
    fn outline(&self, _file: ModelFile<'_>) -> Result<Vec<(&'static str, String)>, LoadError> {
        Ok(Vec::new())
    }

    /// Reads, compiles, warms up and measures a model, on the calling thread; `watch` is asked between
    /// steps. Takes from milliseconds to minutes.
    ///
    /// # Errors
    /// The bytes are no model, the engine can't run it or would run it wrongly, the machine lacks
    /// something, or the watch stopped it.
    fn load(
        &self,
        file: ModelFile<'_>,
        options: &LoadOptions,
        watch: &dyn Watch,
    ) -> Result<Arc<dyn Model>, LoadError>;
}

/// A model's file, in memory: an engine opens nothing by itself, so a model can't name other files.
#[derive(Debug, Clone, Copy)]
pub struct ModelFile<'a> {
    /// One of [`Engine::files`].
    pub name: &'a str,
    /// All of it.
    pub bytes: &'a [u8],
}

/// The kind of hardware that an engine uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// The machine's processors.
    Cpu,
    /// A graphics processor.
    Gpu,
}

impl Device {
    /// Triton's name for the kind of an instance.
    pub const fn kind(self) -> &'static str {
        match self {
            Self::Cpu => "KIND_CPU",
            Self::Gpu => "KIND_GPU",
        }
    }

    /// Triton's name for the kind of memory that a model takes.
    pub const fn memory(self) -> &'static str {
        match self {
            Self::Cpu => "CPU",
            Self::Gpu => "GPU",
        }
    }
}

/// The engines that there are, the preferred first.
#[derive(Debug, Clone)]
pub struct Engines(Arc<[Arc<dyn Engine>]>);

/// The same engines in the same order?
impl PartialEq for Engines {
    fn eq(&self, other: &Self) -> bool {
        self.names().eq(other.names())
    }
}

impl Engines {
    /// These, the preferred first. Of two with one name the first is the only one to be had by it.
    pub fn new(engines: impl IntoIterator<Item = Arc<dyn Engine>>) -> Self {
        Self(engines.into_iter().collect())
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<dyn Engine>> {
        self.0.iter()
    }

    /// Their names.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.iter().map(|engine| engine.name())
    }

    /// The engine of this name.
    pub fn get(&self, name: &str) -> Option<&Arc<dyn Engine>> {
        self.iter().find(|engine| engine.name() == name)
    }

    /// The engines for a version that has these files, each with the file that it reads: the one of the name
    /// `wanted`, or else those that are there and can read one of them, the preferred first. None if there is
    /// no such file.
    pub fn choose(
        &self,
        wanted: Option<&str>,
        has: impl Fn(&str) -> bool,
    ) -> Vec<(&Arc<dyn Engine>, &'static str)> {
        let is_there = |engine: &&Arc<dyn Engine>| wanted.is_some() || engine.missing().is_none();
        let reads =
            |engine: &'_ Arc<dyn Engine>| engine.files().iter().copied().find(|file| has(file));
        let engines = self.wanted(wanted).filter(is_there);
        engines.filter_map(|engine| Some((engine, reads(engine)?))).collect()
    }

    /// Names of the files that the engine `wanted`, or else any of them, can read: each once.
    pub fn files(&self, wanted: Option<&str>) -> Vec<&'static str> {
        each_once(self.wanted(wanted).flat_map(|engine| engine.files()))
    }

    /// Builds of the engine `wanted`, or else of all of them: each once.
    pub fn builds(&self, wanted: Option<&str>) -> Vec<&'static str> {
        each_once(self.wanted(wanted).flat_map(|engine| engine.builds()))
    }

    fn wanted<'a>(&'a self, name: Option<&str>) -> impl Iterator<Item = &'a Arc<dyn Engine>> {
        self.iter().filter(move |engine| name.is_none_or(|name| engine.name() == name))
    }
}

fn each_once<'a>(words: impl Iterator<Item = &'a &'static str>) -> Vec<&'static str> {
    let mut all = Vec::new();
    words.for_each(|word| {
        if !all.contains(word) {
            all.push(*word);
        }
    });
    all
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    /// Its name, and the files that it reads; one of the name "missing" is.
    #[derive(Debug)]
    struct Fake(&'static str, &'static [&'static str]);

    impl Engine for Fake {
        fn name(&self) -> &'static str {
            self.0
        }
        fn platform(&self) -> &'static str {
            "none"
        }
        fn files(&self) -> &'static [&'static str] {
            self.1
        }
        fn device(&self) -> Device {
            Device::Gpu
        }
        fn missing(&self) -> Option<String> {
            (self.0 == "missing").then(|| "it is not there".to_owned())
        }
        fn builds(&self) -> &'static [&'static str] {
            self.1
        }
        fn load(
            &self,
            _: ModelFile<'_>,
            _: &LoadOptions,
            _: &dyn Watch,
        ) -> Result<Arc<dyn Model>, LoadError> {
            Err(LoadError::Cancelled)
        }
    }

    #[test]
    fn an_engine_that_is_not_there_is_chosen_only_by_its_name() {
        let engines: [Arc<dyn Engine>; 3] = [
            Arc::new(Fake("missing", &["x"])),
            Arc::new(Fake("a", &["x"])),
            Arc::new(Fake("b", &["y", "x"])),
        ];
        let engines = Engines::new(engines);
        let chosen = |wanted| {
            let found = engines.choose(wanted, |file| file == "x").into_iter();
            found.map(|(engine, _)| engine.name()).collect::<Vec<_>>()
        };
        assert_eq!(chosen(None), ["a", "b"]);
        assert_eq!(chosen(Some("missing")), ["missing"]);
    }

    #[test]
    fn the_first_engine_that_can_read_a_file_is_chosen_unless_one_is_named() {
        let engines: [Arc<dyn Engine>; 2] =
            [Arc::new(Fake("a", &["x", "y"])), Arc::new(Fake("b", &["z", "y"]))];
        let engines = Engines::new(engines);
        let chosen = |wanted, files: &[&str]| {
            let found = engines.choose(wanted, |file| files.contains(&file));
            found.first().map(|(engine, file)| (engine.name(), *file))
        };
        assert_eq!(chosen(None, &["y", "x"]), Some(("a", "x")), "the engine's own order");
        assert_eq!(chosen(None, &["y"]), Some(("a", "y")));
        assert_eq!(chosen(None, &["z"]), Some(("b", "z")));
        assert_eq!(chosen(Some("b"), &["x", "y"]), Some(("b", "y")));
        assert_eq!(chosen(Some("a"), &["z"]), None);
        assert_eq!(chosen(Some("c"), &["x"]), None);
        assert_eq!(engines.files(None), ["x", "y", "z"]);
        assert_eq!(engines.builds(Some("b")), ["z", "y"]);
        assert_eq!(engines.get("b").unwrap().device().kind(), "KIND_GPU");
        assert!(engines.get("c").is_none());
        assert!(engines == engines.clone() && engines != Engines::new([]));
    }
}
