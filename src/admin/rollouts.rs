//! `/rollouts` and `/routes/ROUTE/rollout`: rollouts, shown and commanded.

use super::answer::json_answer;
use crate::http::identify;
use crate::pool::control::ControlHandle;
use crate::rollout::{Command, CommandError, Rollouts};
use http::{Method, Response, StatusCode};
use serde_json::json;
use std::sync::Arc;

/// Whether a path is one of those that [`rollout`] answers.
pub(super) fn is_about(path: &str) -> bool {
    path.split('/').nth(3) == Some("rollout")
}

/// Shows the rollout of a route, or carries out a command about it.
pub(super) async fn rollout(
    rollouts: &Arc<Rollouts>,
    control: &ControlHandle,
    (method, path): (&Method, &str),
) -> Response<Vec<u8>> {
    let refused = |status, error: String| json_answer(status, &json!({ "error": error }));
    let parts: Vec<_> = path.split('/').collect();
    // The parts are separated before they are decoded, so that a name may contain any character.
    let (route, command) = match parts[..] {
        ["", "routes", route, "rollout"] => (route, None),
        ["", "routes", route, "rollout", word] if Command::from_word(word).is_some() => {
            (route, Command::from_word(word))
        }
        _ => {
            let words = Command::WORDS.map(|(word, _)| word).join("|");
            let form = format!("/routes/ROUTE/rollout or /routes/ROUTE/rollout/{words}");
            return refused(StatusCode::NOT_FOUND, format!("expected {form}, found {path:?}"));
        }
    };
    let route = match identify::decode("route", route) {
        Ok(route) => route,
        Err(error) => return refused(StatusCode::BAD_REQUEST, error),
    };
    let wanted = if command.is_some() { Method::POST } else { Method::GET };
    if *method != wanted {
        let error = format!("expected {wanted}, found {method}");
        return refused(StatusCode::METHOD_NOT_ALLOWED, error);
    }
    let found = match command {
        None => rollouts.shown_one(&route).ok_or(CommandError::Unknown(route)),
        Some(command) => rollouts.command(control, &route, command).await,
    };
    match found {
        Ok(shown) => json_answer(StatusCode::OK, &shown),
        Err(error @ CommandError::Unknown(_)) => refused(StatusCode::NOT_FOUND, error.to_string()),
        Err(error @ CommandError::Unfit(_)) => refused(StatusCode::CONFLICT, error.to_string()),
    }
}
