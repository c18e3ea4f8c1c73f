#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;
use crate::document::Document;
use crate::section::Section;

crate::section! {
    /// The section under test.
    struct Tested {
        /// A number.
        number: usize = 7, within(1..=9);
        /// A share,
        /// of two lines.
        part: f64 = 0.1, share();
        /// A time. Default: none.
        time: Option<Duration> = None, optional(interval()), shown "\"5s\"";
        /// Bytes.
        size: u64 = 3 << 20, bytes();
        /// Some.
        some: Vec<u8> = vec![1, 3], some_of(&[("one", 1), ("two", 2), ("three", 3)]);
    }
}

fn read(text: &str) -> Result<Tested, String> {
    let document = Document::parse(text);
    let tested = Tested::read(&document.root());
    document.finish().map(|()| tested).map_err(|found| found.render("f"))
}

#[test]
fn a_section_is_read_with_its_bounds_and_defaults() {
    assert_eq!(read("").unwrap(), Tested::default());
    let stated =
        read("number = 9\npart = \"50%\"\ntime = \"1s\"\nsize = \"1KiB\"\nsome = [\"two\"]\n");
    let time = Some(Duration::from_secs(1));
    let expected = Tested { number: 9, part: 0.5, time, size: 1024, some: vec![2] };
    assert_eq!(stated.unwrap(), expected);
    for (text, expected) in [
        ("number = 10", "number: expected 1 to 9, found 10"),
        ("part = \"101%\"", "part: expected a share"),
        ("time = \"1us\"", "time: expected 1ms or more"),
        ("some = [\"four\"]", "some: expected some of \"one\", \"two\", \"three\""),
        ("numbers = 1", "did you mean \"number\""),
        ("tim = \"1s\"", "did you mean \"time\""),
    ] {
        let words = read(text).unwrap_err();
        assert!(words.contains(expected), "{expected}\n--- not in\n{words}");
    }
}

#[test]
fn the_reference_of_a_section_is_its_declaration_and_can_be_read() {
    let text = Tested::reference("[tested]");
    let expected = "\
# The section under test.
[tested]
# A number.
number = 7

# A share,
# of two lines.
part = \"10%\"

# A time. Default: none.
time = \"5s\"

# Bytes.
size = \"3MiB\"

# Some.
some = [\"one\", \"three\"]
";
    assert_eq!(text, expected);
    let body = text.split_once("[tested]\n").unwrap().1;
    let stated = read(body).unwrap();
    assert_eq!(Tested { time: None, ..stated }, Tested::default());
}

crate::section! {
    /// Keys that refer to another one, or are required.
    struct Pointing {
        /// Required. A number.
        number: usize = 0, required(within(1..=9)), shown "7";
        /// A file.
        file: std::path::PathBuf = "a".into(), path_in_file();
        /// A section.
        of: Option<String> = None, optional(section_name("pool")), shown "\"a\"";
        /// Where.
        place: Option<std::net::SocketAddr> = None, address_or_off("127.0.0.1:1");
        /// Names.
        names: Vec<String> = Vec::new(), each("a name", |name: &String| !name.is_empty());
        /// A word.
        word: String = "w".to_owned(), text("WORD", "a word", |word| word.contains(' ').then_some("one word"));
        /// Bytes.
        window: u32 = 65536, bytes_within(65536..=1048576);
        /// Time.
        time: Duration = Duration::from_secs(3), at_least(Duration::from_secs(1));
        /// Tables.
        tables: () = (), nested("some tables"), shown "[]";
    }
}

fn point(text: &str) -> Result<Pointing, String> {
    let text = format!("{text}\n[pool.a]\n[pool.b]\n");
    let document = Document::parse(&text).in_folder(std::path::Path::new("/etc/f"));
    let root = document.root();
    drop(root.named("pool"));
    root.place_of("tables");
    let pointing = Pointing::read(&root);
    drop(root);
    document.finish().map(|()| pointing).map_err(|found| found.render("f"))
}

#[test]
fn what_must_be_there_or_points_at_something_is_checked_at_its_place() {
    let read = point(
        "number = 3\nfile = \"k/l\"\nof = \"b\"\nplace = \"[::1]:2\"\nnames = [\"n\"]\n\
         word = \"v\"\nwindow = \"1MiB\"\ntime = \"1s\"\ntables = []",
    )
    .unwrap();
    assert_eq!(read.file, std::path::Path::new("/etc/f/k/l"));
    assert_eq!((read.number, read.of.as_deref()), (3, Some("b")));
    assert_eq!(read.place, "[::1]:2".parse().ok());
    assert_eq!((read.names, read.word), (vec!["n".to_owned()], "v".to_owned()));
    assert_eq!((read.window, read.time), (1 << 20, Duration::from_secs(1)));
    assert_eq!(point("number = 1\nplace = \"off\"").unwrap().place, None);
    for (text, expected) in [
        ("", "f:1:1: number: expected 1 to 9, found nothing"),
        ("number = 0", "f:1:10: number: expected 1 to 9, found 0"),
        ("of = \"c\"", "f:1:6: of: expected a pool (\"a\", \"b\"), found \"c\""),
        ("file = \"\"", "f:1:8: file: expected a path, found \"\""),
        ("place = \"on\"", "such as \"127.0.0.1:1\", or \"off\", found \"on\""),
        ("names = [\"a\", \"\"]", "f:1:15: names: expected a name, found \"\""),
        ("word = \"a b\"", "f:1:8: word: expected one word, found \"a b\""),
        ("window = \"1KiB\"", "window: expected \"64KiB\" to \"1MiB\", found \"1KiB\""),
        ("time = \"1ms\"", "f:1:8: time: expected 1s or more, found 1ms"),
    ] {
        let words = point(text).unwrap_err();
        assert!(words.contains(expected), "{expected}\n--- not in\n{words}");
    }
    let required: Vec<_> = Pointing::keys().iter().map(|key| key.is_required).collect();
    assert_eq!(required, [true, false, false, false, false, false, false, false, false]);
}

#[test]
fn keys_that_mean_nothing_are_refused_where_they_stand() {
    let document = Document::parse("word = 3\ntime = \"1s\"\n");
    let root = document.root();
    Pointing::refuse(&root, "kind = \"x\"");
    drop(root);
    let words = document.finish().unwrap_err().render("f");
    for expected in ["f:1:8: word: expected kind = \"x\" beside it", "f:2:8: time: expected kind"] {
        assert!(words.contains(expected), "{expected}\n--- not in\n{words}");
    }
}

#[test]
fn durations_are_shown_in_their_largest_unit() {
    let shown = |nanos| Duration::from_nanos(nanos).shown();
    let all = [0, 1500, 500_000, 1_000_000, 90_000_000_000, 7_200_000_000_000].map(shown);
    assert_eq!(all, ["\"0s\"", "\"1500ns\"", "\"500us\"", "\"1ms\"", "\"90s\"", "\"2h\""]);
}
