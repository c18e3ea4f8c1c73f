//! Wishes about caching: `Cache-Control` of requests and of answers (RFC 9111, section 5.2).

use std::time::Duration;

/// The directives that matter here. Unknown ones are passed over, as the standard has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CacheControl {
    /// Nothing kept may be given without asking the model.
    pub no_cache: bool,
    /// The answer must not be kept.
    pub no_store: bool,
    /// The answer is for one client only.
    pub private: bool,
    /// Only a kept answer is wanted.
    pub only_if_cached: bool,
    /// The greatest age that the client takes.
    pub max_age: Option<Duration>,
}

impl CacheControl {
    /// Reads the values of the header, in their order. A `max-age` that can't be understood counts as 0.
    pub fn parse<'a>(values: impl IntoIterator<Item = &'a str>) -> Self {
        let mut control = Self::default();
        for directive in values.into_iter().flat_map(|value| value.split(',')) {
            let (name, argument) = match directive.split_once('=') {
                Some((name, argument)) => (name, Some(argument.trim().trim_matches('"'))),
                None => (directive, None),
            };
            let name = name.trim();
            let is = |word: &str| name.eq_ignore_ascii_case(word);
            if is("no-cache") {
                control.no_cache = true;
            } else if is("no-store") {
                control.no_store = true;
            } else if is("private") {
                control.private = true;
            } else if is("only-if-cached") {
                control.only_if_cached = true;
            } else if is("max-age") {
                let seconds = argument.and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
                let age = Duration::from_secs(seconds);
                control.max_age = Some(control.max_age.map_or(age, |other| other.min(age)));
            }
        }
        control
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directives_are_read_whatever_stands_beside_them() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        for (values, expected) in [
            (vec![], CacheControl::default()),
            (vec!["no-cache"], CacheControl { no_cache: true, ..Default::default() }),
            (
                vec!["No-Store , x=\"1\"", "PRIVATE"],
                CacheControl { no_store: true, private: true, ..Default::default() },
            ),
            (vec!["max-age=60"], CacheControl { max_age: seconds(60), ..Default::default() }),
            (
                vec!["max-age=\"60\", max-age=7"],
                CacheControl { max_age: seconds(7), ..Default::default() },
            ),
            (vec!["max-age=soon"], CacheControl { max_age: seconds(0), ..Default::default() }),
            (vec!["max-age"], CacheControl { max_age: seconds(0), ..Default::default() }),
            (
                vec!["only-if-cached,,=,max-stale"],
                CacheControl { only_if_cached: true, ..Default::default() },
            ),
        ] {
            assert_eq!(CacheControl::parse(values.iter().copied()), expected, "{values:?}");
        }
    }
}
