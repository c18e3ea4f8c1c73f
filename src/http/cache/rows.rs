//! Batches: the rows that are known are not computed again.
//!
//! Each row of a batch is a question of its own, the same that a request with this row alone asks; of a request for
//! embeddings, each input is a row. Where some
//! are known, the model is asked for the others only, in one smaller request of the same form, and the answer
//! is put together. All rows of an answer come from one content of the model: if the one that has computed
//! the missing rows is not the one that gave the others, the whole batch is asked.

use super::answers::Cache;
use super::message::{Found, Message, Wire, off_io};
use super::time::now;
use bytes::Bytes;
use forebay_cache::{Answer, Content, Entry, Question, embeddings, rows};
use forebay_protocol::oip::InferRequest;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// A longer batch is not taken apart: looking up each row would take longer than the model takes for some.
const MAX_ROWS: usize = 4096;

/// The rows of a batch.
pub(super) struct Rows {
    /// The question of each row.
    questions: Vec<Question>,
    /// The kept answer of each row, where there is one.
    kept: Vec<Option<Arc<Entry>>>,
    /// The content that has given these.
    content: Content,
    /// Place of each row that is asked for, in the order of the request; of equal ones the first.
    asked: Vec<usize>,
}

impl Rows {
    /// The questions of the rows of `request`; `None` if it is no batch.
    pub(super) fn of(
        request: &InferRequest,
        question: impl Fn(&InferRequest) -> Option<Question>,
    ) -> Option<Self> {
        let count = rows::count(request).filter(|&count| (2..=MAX_ROWS).contains(&count))?;
        let row = |row: usize| question(&rows::request_for(request, &[row])?);
        Some(Self::new((0..count).map(row).collect::<Option<_>>()?))
    }

    /// Rows with these questions.
    pub(super) fn new(questions: Vec<Question>) -> Self {
        let count = questions.len();
        let (kept, content) = (vec![None; count], Content::UNSTATED);
        Self { questions, kept, content, asked: (0..count).collect() }
    }

    /// Number of rows.
    pub(super) fn count(&self) -> usize {
        self.questions.len()
    }

    /// Number of rows whose answers are kept.
    pub(super) fn kept(&self) -> usize {
        self.kept.iter().flatten().count()
    }

    /// Looks the rows up under this content, and keeps what was found if it is more than before. Stale rows are
    /// not taken, nor any that are older than `max_age`.
    pub(super) fn look_up(&mut self, cache: &Cache, content: Content, max_age: Option<Duration>) {
        let now = now();
        let is_young = |entry: &Arc<Entry>| {
            entry.is_fresh(now) && max_age.is_none_or(|most| entry.age(now) <= most)
        };
        let find = |&question: &Question| cache.store.get(question, content, now).filter(is_young);
        let kept: Vec<_> = self.questions.iter().map(find).collect();
        if kept.iter().flatten().count() <= self.kept() {
            return;
        }
        let mut first = HashMap::new();
        let is_asked = |&row: &usize| {
            kept[row].is_none() && *first.entry(self.questions[row]).or_insert(row) == row
        };
        self.asked = (0..self.questions.len()).filter(is_asked).collect();
        (self.kept, self.content) = (kept, content);
    }

    /// The questions of the rows that were not found, each once, under this content.
    pub(super) fn unknown(&self, content: Content) -> Vec<(Question, Content)> {
        let mut unknown: Vec<_> = self
            .questions
            .iter()
            .zip(&self.kept)
            .filter(|(_, kept)| kept.is_none() || self.content != content)
            .map(|(question, _)| (*question, content))
            .collect();
        let mut seen = HashSet::new();
        unknown.retain(|(question, _)| seen.insert(*question));
        unknown
    }

    /// Places of the rows that are asked for.
    pub(super) fn asked(&self) -> &[usize] {
        &self.asked
    }

    /// The request for the rows that are not known, in the form of `message`: `wire`, and of gRPC the model that
    /// it names.
    pub(super) fn smaller(
        &self,
        message: &Message,
        wire: Wire,
        model: Option<(&str, Option<&str>)>,
    ) -> Option<Replaced> {
        let (body, json_len) = match message {
            Message::Infer(request) => {
                wire.write(model?, &rows::request_for(request, &self.asked)?)?
            }
            Message::Embeddings(request) => (request.for_inputs(&self.asked)?.into(), None),
        };
        Some(Replaced { body, json_len })
    }

    /// Forgets the rows that were found, so that all of them are asked for.
    pub(super) fn forget(&mut self) {
        *self = Self::new(std::mem::take(&mut self.questions));
    }

    /// Bytes of the rows that are known, as often as they are asked for.
    pub(super) fn bytes(&self) -> usize {
        self.kept.iter().flatten().map(|entry| entry.answer.len()).sum()
    }

    /// Keeps the answers of the rows that were asked for, if they are at most `most` bytes long, and puts the whole
    /// answer together. `None`: they do not fit the known ones.
    pub(super) async fn complete(
        &self,
        cache: &Cache,
        found: &Found,
        (content, most): (Option<Content>, u64),
        entry: impl Fn(Answer) -> Entry,
    ) -> Option<Answer> {
        let new: Vec<_> = match found {
            Found::Infer(response) => {
                rows::split(response, self.asked.len())?.into_iter().map(Answer::new).collect()
            }
            Found::Embeddings(answers) => answers.clone(),
        };
        if self.kept() > 0 && content != Some(self.content) {
            return None;
        }
        if let Some(content) = content {
            let count = u32::try_from(new.len().max(1)).unwrap_or(u32::MAX);
            for (row, answer) in self.asked.iter().zip(&new) {
                let one = entry(answer.clone());
                if answer.len() as u64 <= most {
                    let one = Arc::new(Entry { took: one.took / count, ..one });
                    cache.insert(self.questions[*row], content, one);
                }
            }
        }
        self.joined(&new, matches!(found, Found::Embeddings(_))).await
    }

    /// The whole answer, with these answers of the rows that were asked for.
    async fn joined(&self, new: &[Answer], are_embeddings: bool) -> Option<Answer> {
        let asked = self.asked.iter().map(|&row| self.questions[row]);
        let by_question: HashMap<_, _> = asked.zip(new).collect();
        let mut all = Vec::with_capacity(self.count());
        for (kept, question) in self.kept.iter().zip(&self.questions) {
            all.push(match kept {
                Some(kept) => kept.answer.clone(),
                None => (*by_question.get(question)?).clone(),
            });
        }
        let bytes = all.iter().map(Answer::len).sum();
        off_io(bytes, move || together(&all, are_embeddings)).await?
    }

    /// The birth of the oldest kept answer, the end of the first to end, and the time that all of them took.
    pub(super) fn times(&self) -> (Duration, Duration, Duration) {
        let kept = || self.kept.iter().flatten();
        let born = kept().map(|entry| entry.born).min().unwrap_or_default();
        let expires = kept().map(|entry| entry.expires).min().unwrap_or_default();
        (born, expires, kept().map(|entry| entry.took).sum())
    }

    /// The whole answer, if all rows are known.
    pub(super) async fn whole(&self, message: &Message) -> Option<Answer> {
        if self.kept() < self.count() {
            return None;
        }
        self.joined(&[], message.is_embeddings()).await
    }
}

/// The whole answer, from those of its rows.
fn together(rows: &[Answer], are_embeddings: bool) -> Option<Answer> {
    if are_embeddings {
        return embeddings::join(&rows.iter().collect::<Vec<_>>()).map(Answer::of_bytes);
    }
    let all = rows.iter().map(Answer::response).collect::<Result<Vec<_>, _>>().ok()?;
    rows::join(&all.iter().collect::<Vec<_>>()).map(Answer::new)
}

/// A request that is sent in place of the client's.
pub struct Replaced {
    /// Its body.
    pub body: Bytes,
    /// Bytes of JSON before the tensors, if there are any in binary form.
    pub json_len: Option<usize>,
}
