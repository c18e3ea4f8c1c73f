//! Equal questions that are asked at once are answered by one inference.
//!
//! The first one *leads*: it is sent. The others *follow*: they wait for its answer, each for as long as it
//! may. If the leader gets no answer that others may have, all followers learn it at the same time and go on
//! by themselves, together: one after the other, the last of a thousand would wait for a thousand failures.
//! A leader's client may leave; then it is for the leader to go on as long as it has followers.

use crate::question::Question;
use std::collections::HashMap;
use std::collections::hash_map::{Entry, OccupiedEntry};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// Flights are spread over so many locks.
const SHARDS: usize = 16;

type Shard<T> = Mutex<HashMap<Question, Flight<T>>>;

/// Questions that are under way.
#[derive(Debug)]
pub struct Flights<T> {
    shards: Arc<[Shard<T>; SHARDS]>,
    waiting: Arc<AtomicUsize>,
}

impl<T> Default for Flights<T> {
    fn default() -> Self {
        let shards = Arc::new(std::array::from_fn(|_| Mutex::default()));
        Self { shards, waiting: Arc::default() }
    }
}

#[derive(Debug)]
struct Flight<T> {
    answer: watch::Receiver<Option<T>>,
    /// Lower is more urgent.
    urgency: u8,
}

/// The part that a question has.
#[derive(Debug)]
pub enum Part<T> {
    /// It is sent, and its answer is given to those that follow.
    Lead(Leader<T>),
    /// An equal one is under way.
    Follow(Follower<T>),
}

/// Has to answer for others; if it is dropped without an answer, they go on by themselves.
#[derive(Debug)]
pub struct Leader<T> {
    question: Question,
    answer: watch::Sender<Option<T>>,
    shards: Arc<[Shard<T>; SHARDS]>,
}

/// Waits for the answer of another.
#[derive(Debug)]
pub struct Follower<T> {
    answer: watch::Receiver<Option<T>>,
    /// Counts as waiting until dropped.
    waiting: Arc<AtomicUsize>,
}

impl<T> Drop for Follower<T> {
    fn drop(&mut self) {
        self.waiting.fetch_sub(1, Relaxed);
    }
}

impl<T: Clone> Flights<T> {
    /// Joins the flight of this question, or begins one. One that is more urgent than the flight leads a
    /// flight of its own, which later ones join: it must not wait in a less urgent one's place. A lower
    /// `urgency` is more urgent.
    pub fn join(&self, question: Question, urgency: u8) -> Part<T> {
        let (answer, receiver) = watch::channel(None);
        let flight = Flight { answer: receiver, urgency };
        let mut shard = lock(&self.shards, question);
        match shard.entry(question) {
            Entry::Occupied(under_way) if under_way.get().urgency <= urgency => {
                self.waiting.fetch_add(1, Relaxed);
                let (answer, waiting) = (under_way.get().answer.clone(), Arc::clone(&self.waiting));
                return Part::Follow(Follower { answer, waiting });
            }
            Entry::Occupied(mut less_urgent) => {
                less_urgent.insert(flight);
            }
            Entry::Vacant(place) => {
                place.insert(flight);
            }
        }
        drop(shard);
        Part::Lead(Leader { question, answer, shards: Arc::clone(&self.shards) })
    }

    /// Number of questions that wait for the answer of another.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Relaxed)
    }

    /// Number of flights.
    pub fn len(&self) -> usize {
        let count = |shard: &Shard<T>| shard.lock().unwrap_or_else(PoisonError::into_inner).len();
        self.shards.iter().map(count).sum()
    }

    /// Whether nothing is under way.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn lock<T>(
    shards: &[Shard<T>; SHARDS],
    question: Question,
) -> MutexGuard<'_, HashMap<Question, Flight<T>>> {
    let place = usize::try_from(question.number() % SHARDS as u64).unwrap_or_default();
    shards[place].lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T> Leader<T> {
    /// Gives all followers the answer.
    pub fn land(self, answer: T) {
        self.answer.send_replace(Some(answer));
    }

    /// Whether others wait for its answer.
    pub fn has_followers(&self) -> bool {
        let mut shard = lock(&self.shards, self.question);
        // One receiver is the flight's own, as long as a more urgent one has not replaced it.
        let own = usize::from(self.flight(&mut shard).is_some());
        self.answer.receiver_count() > own
    }

    /// Its flight, if later questions still join it.
    fn flight<'a>(
        &self,
        shard: &'a mut HashMap<Question, Flight<T>>,
    ) -> Option<OccupiedEntry<'a, Question, Flight<T>>> {
        match shard.entry(self.question) {
            Entry::Occupied(flight)
                if flight.get().answer.same_channel(&self.answer.subscribe()) =>
            {
                Some(flight)
            }
            _ => None,
        }
    }
}

impl<T> Drop for Leader<T> {
    fn drop(&mut self) {
        let mut shard = lock(&self.shards, self.question);
        if let Some(flight) = self.flight(&mut shard) {
            flight.remove();
        }
    }
}

impl<T: Clone> Follower<T> {
    /// Waits for the answer; `None`: there is none for others, and each goes on by itself.
    pub async fn answer(mut self) -> Option<T> {
        let answer = self.answer.wait_for(Option::is_some).await.ok()?;
        answer.clone()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
    use super::*;
    use crate::question::{Asked, Hasher};
    use forebay_protocol::oip::InferRequest;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    fn question(model: &str) -> Question {
        let asked = Asked {
            route: "",
            variant: "",
            model,
            version: None,
            epoch: "",
            client: None,
            vary: &[],
        };
        Hasher::new([0; 32]).question(&asked, &InferRequest::default()).unwrap()
    }

    fn lead(flights: &Flights<u32>, model: &str, urgency: u8) -> Leader<u32> {
        match flights.join(question(model), urgency) {
            Part::Lead(leader) => leader,
            Part::Follow(_) => panic!("expected to lead"),
        }
    }

    fn follow(flights: &Flights<u32>, model: &str, urgency: u8) -> Follower<u32> {
        match flights.join(question(model), urgency) {
            Part::Follow(follower) => follower,
            Part::Lead(_) => panic!("expected to follow"),
        }
    }

    fn poll(follower: Follower<u32>) -> Poll<Option<u32>> {
        pin!(follower.answer()).poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn equal_questions_get_the_answer_of_the_first() {
        let flights = Flights::default();
        let leader = lead(&flights, "m", 1);
        assert!(!leader.has_followers());
        let followers: Vec<_> = (0..1000).map(|_| follow(&flights, "m", 1)).collect();
        assert!(leader.has_followers());
        assert_eq!(flights.waiting(), 1000);
        let other = lead(&flights, "n", 1);
        assert_eq!(flights.len(), 2);
        leader.land(42);
        assert!(followers.into_iter().all(|one| poll(one) == Poll::Ready(Some(42))));
        drop(other);
        assert!(flights.is_empty(), "what has landed is no flight any more");
        assert_eq!(flights.waiting(), 0);
        lead(&flights, "m", 1);
    }

    #[test]
    fn without_an_answer_all_go_on_together() {
        let flights = Flights::default();
        let leader = lead(&flights, "m", 1);
        let followers: Vec<_> = (0..10).map(|_| follow(&flights, "m", 1)).collect();
        let waiting = follow(&flights, "m", 1);
        let mut waiting = Box::pin(waiting.answer());
        let mut context = Context::from_waker(Waker::noop());
        assert_eq!(waiting.as_mut().poll(&mut context), Poll::Pending);
        drop(leader);
        assert!(followers.into_iter().all(|one| poll(one) == Poll::Ready(None)));
        assert_eq!(waiting.as_mut().poll(&mut context), Poll::Ready(None));
        assert!(flights.is_empty());
    }

    #[test]
    fn a_more_urgent_one_does_not_wait_for_a_less_urgent_one() {
        let flights = Flights::default();
        let slow = lead(&flights, "m", 2);
        let with_slow = follow(&flights, "m", 2);
        let urgent = lead(&flights, "m", 0);
        let with_urgent = follow(&flights, "m", 2);
        assert!(slow.has_followers());
        slow.land(1);
        assert_eq!(poll(with_slow), Poll::Ready(Some(1)));
        assert_eq!(flights.len(), 1, "the urgent one is still under way");
        urgent.land(2);
        assert_eq!(poll(with_urgent), Poll::Ready(Some(2)));
        assert!(flights.is_empty());
    }
}
