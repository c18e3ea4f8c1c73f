//! Requests for embeddings in OpenAI's form, taken apart into their inputs and put together.
//!
//! Each input is embedded by itself, so each is a question of its own, and of a list only those inputs need to
//! be embedded that are not known. The numbers are kept as the server has written them, so an answer that is put
//! together is the same to the letter. Everything else that a request says, but `user`, is part of the question.
//!
//! Source: <https://platform.openai.com/docs/api-reference/embeddings>.

use crate::answer::Answer;
use forebay_protocol::openai::{Input, Inputs};
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::fmt;

/// The key with the inputs.
const INPUT: &str = "input";
/// A key that says who asks, and changes no answer.
const USER: &str = "user";
/// Maximum number of keys of a request; OpenAI has five.
const MAX_KEYS: usize = 64;

/// A request for embeddings.
#[derive(Debug)]
pub struct EmbeddingsRequest {
    /// The model, as the request names it.
    pub model: String,
    /// The inputs to embed.
    pub inputs: Vec<Input>,
    /// The other keys in their order, with their values as they stand there.
    pub others: Vec<(String, Box<RawValue>)>,
}

/// The keys of an object in their order, each once.
struct Keys(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Keys;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Keys, A::Error> {
                let mut keys = Vec::<(String, Box<RawValue>)>::new();
                while let Some((key, value)) = map.next_entry::<String, _>()? {
                    // Of a key that stands there twice, servers differ in which one counts.
                    if keys.len() == MAX_KEYS || keys.iter().any(|(known, _)| *known == key) {
                        return Err(A::Error::custom("expected few keys, each of them once"));
                    }
                    keys.push((key, value));
                }
                Ok(Keys(keys))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

impl EmbeddingsRequest {
    /// Reads a body; `None`: it is malformed, or has no inputs.
    pub fn parse(body: &[u8]) -> Option<Self> {
        let Keys(keys) = serde_json::from_slice(body).ok()?;
        let value =
            |name: &str| keys.iter().find(|(key, _)| key == name).map(|(_, value)| value.get());
        let model = serde_json::from_str(value("model")?).ok()?;
        let Inputs(inputs) = serde_json::from_str(value(INPUT)?).ok()?;
        let others = keys.into_iter().filter(|(key, _)| key != INPUT).collect();
        (!inputs.is_empty()).then_some(Self { model, inputs, others })
    }

    /// The other keys and their values, sorted, without those that change no answer.
    pub fn terms(&self) -> Vec<(&str, &str)> {
        let others = self.others.iter().filter(|(key, _)| key != USER);
        let mut terms: Vec<_> = others.map(|(key, value)| (key.as_str(), value.get())).collect();
        terms.sort_unstable();
        terms
    }

    /// The body of a request for these inputs alone, in this order.
    pub fn for_inputs(&self, places: &[usize]) -> Option<Vec<u8>> {
        let inputs: Option<Vec<_>> =
            places.iter().map(|&place| Some(written(self.inputs.get(place)?))).collect();
        let mut body = format!("{{\"{INPUT}\":[{}]", inputs?.join(","));
        for (key, value) in &self.others {
            let key = serde_json::to_string(key).ok()?;
            body.push_str(&format!(",{key}:{}", value.get()));
        }
        body.push('}');
        Some(body.into_bytes())
    }

    /// The share of each of these inputs in the work, for servers that state the tokens of all of them only.
    fn weights(&self, places: &[usize]) -> Vec<u64> {
        let weight = |input: &Input| match input {
            Input::Text(text) => text.len(),
            Input::Tokens(tokens) => tokens.len(),
        };
        places.iter().map(|&place| self.inputs.get(place).map_or(0, weight) as u64).collect()
    }
}

fn written(input: &Input) -> String {
    match input {
        // Texts and numbers always have a form in JSON.
        Input::Text(text) => serde_json::to_string(text).unwrap_or_default(),
        Input::Tokens(tokens) => serde_json::to_string(tokens).unwrap_or_default(),
    }
}

#[derive(Deserialize)]
struct EmbeddingsAnswer<'a> {
    #[serde(borrow)]
    data: Vec<Embedding<'a>>,
    model: String,
    usage: Usage,
}

#[derive(Deserialize)]
struct Embedding<'a> {
    index: usize,
    #[serde(borrow)]
    embedding: &'a RawValue,
}

#[derive(Deserialize)]
struct Usage {
    prompt_tokens: u32,
}

/// The embedding of one input, as it is kept.
#[derive(Serialize, Deserialize)]
struct Kept<'a> {
    tokens: u64,
    model: String,
    #[serde(borrow)]
    embedding: &'a RawValue,
}

/// The answers to the single inputs at `places`; `None`: there is not one for each. `tokens`: those of each
/// input, if the server states them. Where it does not, the stated sum is shared out by the lengths of the
/// inputs.
pub fn split(
    request: &EmbeddingsRequest,
    body: &[u8],
    (places, tokens): (&[usize], Option<&[u64]>),
) -> Option<Vec<Answer>> {
    let answer: EmbeddingsAnswer<'_> = serde_json::from_slice(body).ok()?;
    let mut embeddings = vec![None; places.len()];
    if answer.data.len() != places.len() {
        return None;
    }
    for Embedding { index, embedding } in answer.data {
        embeddings.get_mut(index)?.replace(embedding);
    }
    let sum = u64::from(answer.usage.prompt_tokens);
    let stated = tokens.filter(|stated| {
        stated.len() == places.len()
            && stated.iter().try_fold(0_u64, |sum, &one| sum.checked_add(one)) == Some(sum)
    });
    let tokens = match stated {
        Some(stated) => stated.to_vec(),
        None => shared_out(sum, &request.weights(places)),
    };
    let one = |(embedding, tokens): (Option<_>, u64)| {
        let kept = Kept { tokens, model: answer.model.clone(), embedding: embedding? };
        Some(Answer::of_bytes(serde_json::to_vec(&kept).ok()?))
    };
    embeddings.into_iter().zip(tokens).map(one).collect()
}

/// Whole numbers in the proportion of `weights` whose sum is `sum`.
fn shared_out(sum: u64, weights: &[u64]) -> Vec<u64> {
    let all: u128 = weights.iter().map(|&weight| u128::from(weight)).sum();
    let mut seen = 0;
    let mut given = 0;
    let count = weights.len() as u128;
    let up_to = |seen: u128, place: u128| match all {
        0 => u128::from(sum) * place / count,
        _ => u128::from(sum) * seen / all,
    };
    let one = |(place, &weight): (usize, &u64)| {
        seen += u128::from(weight);
        let share = up_to(seen, place as u128 + 1) - given;
        given += share;
        // At most the sum.
        u64::try_from(share).unwrap_or(u64::MAX)
    };
    weights.iter().enumerate().map(one).collect()
}

/// The body of the answer to all inputs, from the answers to each. `None`: they are not of one model.
pub fn join(kept: &[&Answer]) -> Option<Vec<u8>> {
    let (mut tokens, mut model, mut data) = (0_u64, None, String::new());
    for (index, answer) in kept.iter().enumerate() {
        let one: Kept<'_> = serde_json::from_slice(answer.bytes()).ok()?;
        if model.get_or_insert_with(|| one.model.clone()) != &one.model {
            return None;
        }
        tokens = tokens.saturating_add(one.tokens);
        let separator = if index == 0 { "" } else { "," };
        let embedding = one.embedding.get();
        data.push_str(&format!(
            "{separator}{{\"object\":\"embedding\",\"index\":{index},\"embedding\":{embedding}}}"
        ));
    }
    let model = serde_json::to_string(&model?).ok()?;
    let usage = format!("{{\"prompt_tokens\":{tokens},\"total_tokens\":{tokens}}}");
    let body =
        format!("{{\"object\":\"list\",\"data\":[{data}],\"model\":{model},\"usage\":{usage}}}");
    Some(body.into_bytes())
}

/// The model that has given the embedding of one input.
pub fn model(kept: &Answer) -> Option<String> {
    serde_json::from_slice::<Kept<'_>>(kept.bytes()).ok().map(|kept| kept.model)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn read(body: &str) -> EmbeddingsRequest {
        EmbeddingsRequest::parse(body.as_bytes()).unwrap()
    }

    const ANSWER: &str = r#"{"object":"list","id":"x","data":[
        {"object":"embedding","index":1,"embedding":[0.10, -0.0]},
        {"object":"embedding","index":0,"embedding":"AAA="}],
        "model":"m","usage":{"prompt_tokens":7,"total_tokens":7}}"#;

    #[test]
    fn a_request_is_its_inputs_and_its_terms() {
        let request = read(r#"{"user":"u","input":["a\u0041","b"],"model":"m","dimensions": 8}"#);
        assert_eq!(request.inputs, [Input::Text("aA".into()), Input::Text("b".into())]);
        assert_eq!(request.terms(), [("dimensions", "8"), ("model", "\"m\"")]);
        let smaller = String::from_utf8(request.for_inputs(&[1]).unwrap()).unwrap();
        assert_eq!(smaller, r#"{"input":["b"],"user":"u","model":"m","dimensions":8}"#);
        assert_eq!(read(&smaller).terms(), request.terms());
        assert!(request.for_inputs(&[2]).is_none());
        assert_eq!(read(r#"{"model":"m","input":"a"}"#).inputs.len(), 1);
        let tokens = read(r#"{"model":"m","input":[[1,2],[3]]}"#).for_inputs(&[0]).unwrap();
        assert_eq!(tokens, br#"{"input":[[1,2]],"model":"m"}"#);
    }

    #[test]
    fn a_request_that_servers_read_differently_is_not_read() {
        let many: String = (0..100).map(|key| format!("\"{key}\":0,")).collect();
        let many = format!("{{{many}\"model\":\"m\",\"input\":\"a\"}}");
        for wrong in [
            r#"{"model":"m","input":"a","input":"b"}"#,
            r#"{"model":"m","model":"n","input":"b"}"#,
            r#"{"model":"m","input":[]}"#,
            r#"{"model":"m","input":7}"#,
            r#"{"input":"a"}"#,
            r#"{"model":7,"input":"a"}"#,
            "[]",
            "",
            &many,
        ] {
            assert!(EmbeddingsRequest::parse(wrong.as_bytes()).is_none(), "{wrong}");
        }
    }

    #[test]
    fn an_answer_is_put_together_to_the_letter() {
        let request = read(r#"{"model":"m","input":["abc","d"]}"#);
        let kept = split(&request, ANSWER.as_bytes(), (&[0, 1], Some(&[2, 5]))).unwrap();
        let turned = join(&[&kept[1], &kept[0], &kept[1]]).unwrap();
        assert_eq!(
            String::from_utf8(turned).unwrap(),
            r#"{"object":"list","data":[{"object":"embedding","index":0,"embedding":[0.10, -0.0]},{"object":"embedding","index":1,"embedding":"AAA="},{"object":"embedding","index":2,"embedding":[0.10, -0.0]}],"model":"m","usage":{"prompt_tokens":12,"total_tokens":12}}"#
        );
        assert_eq!(model(&kept[0]).unwrap(), "m");
        assert!(split(&request, ANSWER.as_bytes(), (&[0], None)).is_none());
        let twice = ANSWER.replace("\"index\":1", "\"index\":0");
        assert!(split(&request, twice.as_bytes(), (&[0, 1], None)).is_none());
        assert!(split(&request, b"{}", (&[0, 1], None)).is_none());
    }

    #[test]
    fn tokens_that_are_stated_wrongly_or_not_are_shared_out_and_none_is_lost() {
        let request = read(r#"{"model":"m","input":["abc","d"]}"#);
        for stated in [None, Some(&[1, 1][..]), Some(&[7][..])] {
            let kept = split(&request, ANSWER.as_bytes(), (&[0, 1], stated)).unwrap();
            let tokens = |place: usize| {
                serde_json::from_slice::<Kept<'_>>(kept[place].bytes()).unwrap().tokens
            };
            assert_eq!((tokens(0), tokens(1)), (5, 2));
        }
        for (sum, weights) in [
            (10, &[0, 0, 0][..]),
            (1, &[5, 5, 5]),
            (0, &[1]),
            (u32::MAX.into(), &[u32::MAX.into(), 3]),
        ] {
            assert_eq!(
                shared_out(sum, weights).iter().map(|&one| u128::from(one)).sum::<u128>(),
                sum.into()
            );
        }
        assert!(shared_out(3, &[]).is_empty());
    }
}
