//! Weights that a file leaves to others beside it.
//!
//! Exporters write large weights, or by default all, into a second file. A model may name such a file, and
//! nothing else: no folder, no way up. It is read once, by the process that loads the model, and its parts are put where
//! they belong, so that everything behind sees one file.

use forebay_engine::LoadError;
use prost::Message;
use std::collections::HashMap;
use std::sync::Arc;
use tract_onnx::pb;

/// Deepest nesting of graphs that is followed.
const MAX_SUBGRAPHS: usize = 16;

/// The file with all weights in it; the same bytes if it leaves none to others.
pub(crate) fn whole(
    bytes: Vec<u8>,
    beside: &dyn Fn(&str) -> Result<Vec<u8>, LoadError>,
) -> Result<Vec<u8>, LoadError> {
    // The key of each name in such a file; most files have none.
    const KEY: &[u8] = b"location";
    if !bytes.windows(KEY.len()).any(|window| window == KEY) {
        return Ok(bytes);
    }
    let Ok(mut model) = pb::ModelProto::decode(bytes.as_slice()) else { return Ok(bytes) };
    let mut files: HashMap<String, Arc<Vec<u8>>> = HashMap::new();
    let mut is_changed = false;
    if let Some(graph) = model.graph.as_mut() {
        fill(graph, 0, &mut |weight| {
            is_changed = true;
            fill_one(weight, &mut files, beside)
        })?;
    }
    Ok(if is_changed { model.encode_to_vec() } else { bytes })
}

type Fill<'a> = &'a mut dyn FnMut(&mut pb::TensorProto) -> Result<(), LoadError>;

fn fill(graph: &mut pb::GraphProto, depth: usize, take: Fill<'_>) -> Result<(), LoadError> {
    let external = pb::tensor_proto::DataLocation::External as i32;
    let is_elsewhere = |weight: &pb::TensorProto| {
        weight.data_location == Some(external) || !weight.external_data.is_empty()
    };
    for weight in graph.initializer.iter_mut().filter(|weight| is_elsewhere(weight)) {
        take(weight)?;
    }
    for attribute in graph.node.iter_mut().flat_map(|node| &mut node.attribute) {
        let own = attribute.t.iter_mut().chain(&mut attribute.tensors);
        for weight in own.filter(|weight| is_elsewhere(weight)) {
            take(weight)?;
        }
        for graph in attribute.g.iter_mut().chain(&mut attribute.graphs) {
            if depth < MAX_SUBGRAPHS {
                fill(graph, depth + 1, take)?;
            }
        }
    }
    Ok(())
}

fn fill_one(
    weight: &mut pb::TensorProto,
    files: &mut HashMap<String, Arc<Vec<u8>>>,
    beside: &dyn Fn(&str) -> Result<Vec<u8>, LoadError>,
) -> Result<(), LoadError> {
    let name = weight.name.escape_debug().to_string();
    let refused = |why: String| LoadError::Refused(format!("weight \"{name}\": {why}"));
    let value = |key: &str| {
        let mut entries = weight.external_data.iter();
        entries.find(|entry| entry.key == key).map(|entry| entry.value.clone())
    };
    let number = |key: &str| -> Result<Option<usize>, LoadError> {
        value(key)
            .map(|text| {
                let parsed = text.parse::<usize>();
                parsed.map_err(|_| refused(format!("expected a number as {key}, found \"{text}\"")))
            })
            .transpose()
    };
    let file = value("location").unwrap_or_default();
    let is_plain =
        !file.is_empty() && file != "." && file != ".." && !file.contains(['/', '\\', '\0']);
    if !is_plain {
        let text = file.escape_debug();
        return Err(refused(format!(
            "expected the name of a file beside the model, found \"{text}\"; \
             onnx.save_model(model, path) writes all weights into one file"
        )));
    }
    let data = match files.get(&file) {
        Some(data) => Arc::clone(data),
        None => {
            let data = Arc::new(beside(&file)?);
            files.insert(file.clone(), Arc::clone(&data));
            data
        }
    };
    let start = number("offset")?.unwrap_or(0);
    let end = match number("length")? {
        Some(length) => start.checked_add(length),
        None => Some(data.len()),
    };
    let part = end
        .and_then(|end| data.get(start..end))
        .ok_or_else(|| refused(format!("expected more than {} bytes in \"{file}\"", data.len())))?;
    weight.raw_data = part.to_vec();
    weight.external_data.clear();
    weight.data_location = None;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn model(entries: &[(&str, &str)]) -> Vec<u8> {
        let entry = |(key, value): &(&str, &str)| pb::StringStringEntryProto {
            key: (*key).to_owned(),
            value: (*value).to_owned(),
        };
        let weight = pb::TensorProto {
            name: "w".to_owned(),
            dims: vec![2],
            data_type: pb::tensor_proto::DataType::Float.into(),
            data_location: Some(pb::tensor_proto::DataLocation::External as i32),
            external_data: entries.iter().map(entry).collect(),
            ..pb::TensorProto::default()
        };
        let graph = pb::GraphProto { initializer: vec![weight], ..pb::GraphProto::default() };
        pb::ModelProto { graph: Some(graph), ..pb::ModelProto::default() }.encode_to_vec()
    }

    fn read(name: &str) -> Result<Vec<u8>, LoadError> {
        match name {
            "data" => Ok((0..16).collect()),
            other => Err(LoadError::Refused(format!("no {other}"))),
        }
    }

    #[test]
    fn weights_beside_a_model_are_put_into_it() {
        let file = model(&[("location", "data"), ("offset", "4"), ("length", "8")]);
        let whole = whole(file, &read).unwrap();
        let found = pb::ModelProto::decode(whole.as_slice()).unwrap().graph.unwrap();
        assert_eq!(found.initializer[0].raw_data, (4..12).collect::<Vec<u8>>());
        assert!(found.initializer[0].external_data.is_empty());
        let plain = pb::ModelProto::default().encode_to_vec();
        assert_eq!(super::whole(plain.clone(), &read).unwrap(), plain);
    }

    #[test]
    fn a_model_names_a_file_beside_it_and_no_more_of_that_than_there_is() {
        let named = ["", ".", "..", "../data", "a/data", "/etc/passwd", "a\\b", "none"];
        for location in named {
            assert!(whole(model(&[("location", location)]), &read).is_err(), "{location}");
        }
        for (offset, length) in
            [("0", "17"), ("17", "0"), ("-1", "4"), ("x", "4"), ("9", "18446744073709551615")]
        {
            let file = model(&[("location", "data"), ("offset", offset), ("length", length)]);
            assert!(whole(file, &read).is_err(), "{offset} {length}");
        }
    }
}
