//! The call that a path means, without an allocation: the proxy asks for every request.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, PercentEncode, utf8_percent_encode};

/// A call of the protocol, as far as path tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// `GET /v2`
    ServerMetadata,
    /// `GET /v2/health/live`
    ServerLive,
    /// `GET /v2/health/ready`
    ServerReady,
    /// `GET /v2/models/{model}[/versions/{version}]`
    ModelMetadata,
    /// `GET /v2/models/{model}[/versions/{version}]/ready`
    ModelReady,
    /// `POST /v2/models/{model}[/versions/{version}]/infer`
    Infer,
    /// Any other path under a model: `config`, `stats`, `generate`, …
    ModelOther,
    /// Any other path under `/v2`, such as the model repository extension.
    Other,
}

/// A path of the protocol, split; parts are still percent-encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path<'a> {
    /// The requested call.
    pub call: Call,
    /// The model, where the path names one.
    pub model: Option<&'a str>,
    /// Its version, where the path names one.
    pub version: Option<&'a str>,
}

impl<'a> Path<'a> {
    /// Splits `path` (no query). `None`: not a path of this protocol.
    pub fn parse(path: &'a str) -> Option<Self> {
        let rest = path.strip_prefix("/v2")?;
        let server = |call| Some(Self { call, model: None, version: None });
        let rest = match rest {
            "" | "/" => return server(Call::ServerMetadata),
            "/health/live" => return server(Call::ServerLive),
            "/health/ready" => return server(Call::ServerReady),
            _ => rest.strip_prefix('/')?,
        };
        let Some(rest) = rest.strip_prefix("models/") else { return server(Call::Other) };
        let (model, mut tail) = split(rest);
        // Triton's call for all models; one of this name has its own under `versions`.
        if model.is_empty() || (model, tail) == ("stats", "") {
            return server(Call::Other);
        }
        let mut version = None;
        if let Some(rest) = tail.strip_prefix("versions/") {
            let (found, rest) = split(rest);
            version = Some(found).filter(|v| !v.is_empty());
            tail = rest;
        }
        let call = match tail {
            "" => Call::ModelMetadata,
            "ready" => Call::ModelReady,
            "infer" => Call::Infer,
            _ => Call::ModelOther,
        };
        Some(Self { call, model: Some(model), version })
    }
}

/// `path` with another model or version in place of those that it names. Without a `version`, that of
/// the path goes with its model. `None`: it names no model.
pub fn with_model(path: &str, model: Option<&str>, version: Option<&str>) -> Option<String> {
    let parsed = Path::parse(path)?;
    let rest = path.strip_prefix("/v2/models/")?;
    let (present, mut tail) = split(parsed.model.and(Some(rest))?);
    if version.or(model).is_some()
        && let Some(rest) = tail.strip_prefix("versions/")
    {
        (_, tail) = split(rest);
    }
    let mut path = String::from("/v2/models/");
    match model {
        Some(model) => path.extend(encoded(model)),
        None => path.push_str(present),
    }
    if let Some(version) = version {
        path.push_str("/versions/");
        path.extend(encoded(version));
    }
    if !tail.is_empty() {
        path.push('/');
        path.push_str(tail);
    }
    Some(path)
}

/// A name as one part of a path: what does not stand for itself everywhere is encoded (RFC 3986, 2.3).
pub fn encoded(name: &str) -> PercentEncode<'_> {
    const RESERVED: &AsciiSet =
        &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
    utf8_percent_encode(name, RESERVED)
}

fn split(path: &str) -> (&str, &str) {
    path.split_once('/').unwrap_or((path, ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_exchanged_without_its_version_and_a_version_alone() {
        let (model, version) = (Some("small/b"), Some("2 b"));
        for (path, model, version, expected) in [
            ("/v2/models/a/infer", model, None, Some("/v2/models/small%2Fb/infer")),
            ("/v2/models/a/versions/3/infer", model, None, Some("/v2/models/small%2Fb/infer")),
            ("/v2/models/a", model, None, Some("/v2/models/small%2Fb")),
            ("/v2/models/a/versions/3", model, None, Some("/v2/models/small%2Fb")),
            ("/v2/models/a/infer", None, version, Some("/v2/models/a/versions/2%20b/infer")),
            ("/v2/models/a%2F/versions/3", None, version, Some("/v2/models/a%2F/versions/2%20b")),
            (
                "/v2/models/a/versions/3/stats",
                model,
                version,
                Some("/v2/models/small%2Fb/versions/2%20b/stats"),
            ),
            ("/v2/models/a/versions/3/x", None, None, Some("/v2/models/a/versions/3/x")),
            ("/v2/models/stats", model, version, None),
            ("/v2", model, None, None),
            ("/v1/models/a/infer", model, None, None),
        ] {
            assert_eq!(with_model(path, model, version).as_deref(), expected, "{path}");
        }
    }

    #[test]
    fn paths_are_told_apart() {
        let parsed = |path| Path::parse(path).map(|p| (p.call, p.model, p.version));
        for (path, expected) in [
            ("/v2", Some((Call::ServerMetadata, None, None))),
            ("/v2/", Some((Call::ServerMetadata, None, None))),
            ("/v2/health/live", Some((Call::ServerLive, None, None))),
            ("/v2/health/ready", Some((Call::ServerReady, None, None))),
            ("/v2/models/a", Some((Call::ModelMetadata, Some("a"), None))),
            ("/v2/models/a/versions/3", Some((Call::ModelMetadata, Some("a"), Some("3")))),
            ("/v2/models/a/ready", Some((Call::ModelReady, Some("a"), None))),
            ("/v2/models/a/infer", Some((Call::Infer, Some("a"), None))),
            ("/v2/models/a/versions/3/infer", Some((Call::Infer, Some("a"), Some("3")))),
            ("/v2/models/a/stats", Some((Call::ModelOther, Some("a"), None))),
            ("/v2/models/stats", Some((Call::Other, None, None))),
            ("/v2/models/stats/infer", Some((Call::Infer, Some("stats"), None))),
            ("/v2/models//infer", Some((Call::Other, None, None))),
            ("/v2/repository/index", Some((Call::Other, None, None))),
            ("/v20", None),
            ("/v1/models", None),
            ("/", None),
        ] {
            assert_eq!(parsed(path), expected, "{path}");
        }
    }
}
