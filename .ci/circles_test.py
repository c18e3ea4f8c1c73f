#!/usr/bin/env python3
"""circles.py finds the circles of small crates, and none where there is none."""

import pathlib
import tempfile
import unittest

import circles


class Circles(unittest.TestCase):
    def found(self, **files):
        """The circles of a crate with these sources; `a__b` is the file a/b.rs."""
        with tempfile.TemporaryDirectory() as folder:
            circles.ROOT = pathlib.Path(folder)
            for name, text in files.items():
                path = circles.ROOT / "crate" / "src" / f"{name.replace('__', '/')}.rs"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            return [[file.stem for file in files] for files, _ in circles.circles("crate")]

    def test_two_files_that_use_each_other_are_a_circle(self):
        files = {"lib": "mod a; mod b;", "a": "use crate::b::B; pub struct A;", "b": "pub struct B(crate::a::A);"}
        self.assertEqual(self.found(**files), [["a", "b"]])

    def test_one_direction_is_no_circle(self):
        a = "use super::b::{self, B}; fn f() { b::g() }"
        self.assertEqual(self.found(lib="mod a; mod b;", a=a, b="struct B;"), [])

    def test_a_path_through_a_reexport_leads_to_the_file_that_defines_the_item(self):
        a, b = "use crate::B; pub struct A;", "use super::A; pub struct B;"
        self.assertEqual(self.found(lib="mod a; mod b; pub use a::A; pub use b::*;", a=a, b=b), [["a", "b"]])

    def test_a_reexport_is_no_import_unless_the_name_is_used(self):
        child = "use super::Parent; pub struct Child;"
        parent = "mod child; pub use child::Child; pub struct Parent"
        self.assertEqual(self.found(lib="mod a;", a=f"{parent};", a__child=child), [])
        self.assertEqual(self.found(lib="mod a;", a=f"{parent}(Child);", a__child=child), [["child", "a"]])
        parent += "; fn f() { Child::f() }"
        self.assertEqual(self.found(lib="mod a;", a=parent, a__child=child), [["child", "a"]])

    def test_methods_and_fields_are_no_names(self):
        a = "mod child; pub use child::parse; pub struct A; fn f(text: &str) { text.parse() }"
        self.assertEqual(self.found(lib="mod a;", a=a, a__child="use super::A; pub fn parse() {}"), [])

    def test_tests_comments_and_strings_do_not_count(self):
        a = """pub struct A; // crate::b::B
            /* crate::b::B /* crate::b::B */ crate::b::B */
            const TEXT: &str = "crate::b::B"; const RAW: &str = r#"" crate::b::B"#; const QUOTE: char = '"';
            #[cfg(test)] mod tests { use crate::b::B; }
            #[cfg(test)] #[derive(Debug)] struct Of(crate::b::B);"""
        self.assertEqual(self.found(lib="mod a; mod b;", a=a, b="use crate::a::A; pub struct B;"), [])

    def test_code_after_a_test_module_counts(self):
        a = "#[cfg(test)] mod tests { fn f() {} } #[cfg(not(test))] use crate::b::B; pub struct A;"
        self.assertEqual(self.found(lib="mod a; mod b;", a=a, b="use crate::a::A; pub struct B;"), [["a", "b"]])

    def test_names_and_modules_of_other_crates_do_not_count(self):
        a = "use std::b::B; use serde::a; pub struct A; fn f() { http::b() }"
        lib = "mod a; mod b; pub use other::units;"
        self.assertEqual(self.found(lib=lib, a=a, b="use crate::{a::A, units::B};"), [])

    def test_modules_within_a_file_and_globs_are_followed(self):
        a = "mod inner { use super::super::b::*; fn f(b: B) {} } pub struct A;"
        b = "pub mod deep { pub struct D; } pub use crate::a::A as Other; pub struct B(Other);"
        self.assertEqual(self.found(lib="mod a; mod b;", a=a, b=b), [["a", "b"]])

    def test_exported_macros_lead_to_their_file(self):
        a = "#[macro_export] macro_rules! made { () => { $crate::b::B } }"
        b = "pub struct B; fn f() { crate::made!() }"
        self.assertEqual(self.found(lib="mod a; mod b;", a=a, b=b), [["a", "b"]])


if __name__ == "__main__":
    unittest.main()
