//! Tests of warming up.

#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;
use std::path::Path;

fn load(profile: Option<Profile>) -> Model {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("models");
    let bytes = std::fs::read(models.join("ppocr-cls/1/model.onnx")).unwrap();
    let shapes = [("x".to_owned(), vec![-1, 3, 48, 192])].into();
    let options = LoadOptions { max_batch: 4, shapes, profile, ..LoadOptions::default() };
    Model::load(&bytes, &options).unwrap()
}

#[test]
fn a_profile_is_taken_over_and_builds_give_the_same() {
    let grain = Duration::from_millis(7);
    let seconds = vec![(1, 0.5), (2, 0.8), (4, 1.0)];
    let outputs = [Build::Plain, Build::ChannelsLast, Build::Own].map(|build| {
        let (seconds, compared) = (seconds.clone(), vec![(build, 0.5)]);
        let profile = Profile {
            build,
            compared,
            has_batches: true,
            unbatched: None,
            closed: None,
            seconds,
            grain,
        };
        let model = load(Some(profile));
        assert_eq!((model.profile().build, model.compared()), (build, &[(build, 0.5)][..]));
        assert_eq!((model.curve().best(), model.grain()), (4, grain));
        let inputs = inputs(&model, &LoadOptions::default(), Some(3), 0).unwrap();
        model.run(&[&inputs], 4, &|| false).unwrap().remove(0)
    });
    assert!(agree(&outputs[0], &outputs[1], ROW_TOLERANCE));
    assert!(agree(&outputs[0], &outputs[2], ROW_TOLERANCE));
    assert_eq!(outputs[0][0].shape, [3, 2], "padded to 4 rows, and cut again");
}
