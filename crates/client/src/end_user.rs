//! The end user on whose behalf a call is made, handed on to the calls made
//! meanwhile: his token travels hop by hop within a request, and no further.

use std::future::Future;

use http::{HeaderMap, HeaderValue, header::AUTHORIZATION};

/// The token of an end user, as the metadata `authorization` carries it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token(HeaderValue);

impl Token {
    /// The token that a request carries, whatever it is worth; none if it carries
    /// none, or more than one.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(AUTHORIZATION).iter();
        let value = values.next().filter(|_| values.next().is_none())?;
        let mut value = value.clone();
        // No log and no `Debug` shows it.
        value.set_sensitive(true);
        Some(Self(value))
    }

    /// The token itself, if it is of the Bearer scheme (RFC 6750, section 2.1).
    pub fn bearer(&self) -> Option<&str> {
        let (scheme, token) = self.0.to_str().ok()?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim_start_matches(' '))
    }

    /// Sends the token with a request, unless that has one of its own.
    pub(crate) fn send(self, headers: &mut HeaderMap) {
        headers.entry(AUTHORIZATION).or_insert(self.0);
    }
}

tokio::task_local! {
    static CURRENT: Option<Token>;
}

/// Runs `work` on behalf of an end user: every call made in it carries the token.
///
/// A task spawned in it inherits nothing.
pub async fn scope<F: Future>(token: Option<Token>, work: F) -> F::Output {
    CURRENT.scope(token, work).await
}

/// Runs `work` on behalf of an end user, as [`scope`] does, where nothing is
/// awaited: within one poll of a stream.
pub fn sync_scope<T>(token: Option<Token>, work: impl FnOnce() -> T) -> T {
    CURRENT.sync_scope(token, work)
}

/// The token that the current task works with.
pub fn current() -> Option<Token> {
    CURRENT.try_with(Clone::clone).ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(values: &[&'static str]) -> HeaderMap {
        values.iter().map(|value| (AUTHORIZATION, HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn a_token_is_one_value_of_the_bearer_scheme() {
        let bearer = |values: &[&'static str]| {
            Token::of(&headers(values)).and_then(|token| token.bearer().map(str::to_owned))
        };
        assert_eq!(bearer(&["bearer  a.b.c"]), Some("a.b.c".to_owned()));
        assert_eq!(bearer(&["Basic YTpi"]), None);
        assert_eq!(bearer(&["Bearer"]), None);
        assert_eq!(bearer(&["Bearer a", "Bearer b"]), None);
        assert_eq!(bearer(&[]), None);
    }

    #[test]
    fn nothing_shows_a_token() {
        let token = Token::of(&headers(&["Bearer secret"])).unwrap();
        assert!(!format!("{token:?}").contains("secret"));
    }

    #[tokio::test]
    async fn a_call_carries_the_current_token_unless_it_has_its_own() {
        let token = Token::of(&headers(&["Bearer mine"]));
        scope(token, async {
            let mut plain = HeaderMap::new();
            let mut own = headers(&["Bearer own"]);
            current().unwrap().send(&mut plain);
            current().unwrap().send(&mut own);
            assert_eq!(plain[AUTHORIZATION], "Bearer mine");
            assert_eq!(own[AUTHORIZATION], "Bearer own");
        })
        .await;
        assert_eq!(current(), None);
    }
}
