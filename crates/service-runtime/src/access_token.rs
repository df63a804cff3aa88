//! The tokens that prove who an end user is: JWTs (RFC 7519, RFC 9068) signed with
//! EdDSA (RFC 8037), issued by user-service and verified by every service with the
//! keys that it publishes.

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use client::{Channel, end_user::Token};
use futures::future::BoxFuture;
use http::{HeaderMap, header::AUTHORIZATION};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use proto::user::v1::{
    GetJsonWebKeySetRequest, JsonWebKey, auth_service_client::AuthServiceClient,
};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use tonic::{Code, Status};
use uuid::Uuid;

use crate::{Clock, EndUser, Role, Timestamp, refusal};

/// How long an access token lives. A user who is deleted or a key that is revoked
/// is good for so long at most.
pub const ACCESS_TOKEN_LIFETIME: Duration = Duration::from_mins(5);
/// How long published keys are believed before they are asked for again.
pub const KEYS_MAX_AGE: Duration = Duration::from_mins(1);
/// How often keys are asked for at most, whatever tokens come.
const KEYS_MIN_AGE: Duration = Duration::from_secs(1);
/// How long to wait for them.
const KEYS_PATIENCE: Duration = Duration::from_secs(5);
/// The type of an access token (RFC 9068, section 2.1).
const TYPE: &str = "at+jwt";
/// What is worth reading as a token; those of the suite have about 400 bytes.
const LONGEST_TOKEN: usize = 4096;

/// What a token says.
#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    iss: String,
    aud: String,
    sub: Uuid,
    role: Role,
    iat: i64,
    exp: i64,
}

/// Whose tokens are for whom.
#[derive(Clone, Debug)]
pub(crate) struct Realm {
    issuer: String,
    audience: String,
}

impl Realm {
    /// Of the tokens that user-service issues for the suite of a trust domain and
    /// namespace.
    pub(crate) fn new(trust_domain: &str, namespace: &str) -> Self {
        let audience = format!("spiffe://{trust_domain}/ns/{namespace}");
        Self { issuer: format!("{audience}/sa/user-service"), audience }
    }
}

/// Signs access tokens.
pub struct SigningKey {
    key_id: String,
    encoding: EncodingKey,
    public: Vec<u8>,
}

/// A private key that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the private key is no Ed25519 key in PKCS#8")]
pub struct InvalidKey;

impl SigningKey {
    /// The key of this name, from its private key in PKCS#8.
    pub fn from_pkcs8(key_id: impl Into<String>, private_key: &[u8]) -> Result<Self, InvalidKey> {
        let pair = Ed25519KeyPair::from_pkcs8(private_key).map_err(|_| InvalidKey)?;
        Ok(Self {
            key_id: key_id.into(),
            encoding: EncodingKey::from_ed_der(private_key),
            public: pair.public_key().as_ref().to_vec(),
        })
    }

    /// A new private key in PKCS#8, made of 32 unpredictable bytes.
    pub fn generate(seed: &[u8; 32]) -> Result<Vec<u8>, InvalidKey> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| InvalidKey)?;
        Ok(pair.to_pkcs8().map_err(|_| InvalidKey)?.as_ref().to_vec())
    }

    /// What verifies the signatures of this key.
    pub fn public_key(&self) -> JsonWebKey {
        JsonWebKey {
            kty: "OKP".to_owned(),
            crv: "Ed25519".to_owned(),
            alg: "EdDSA".to_owned(),
            r#use: "sig".to_owned(),
            kid: self.key_id.clone(),
            x: BASE64_URL_SAFE_NO_PAD.encode(&self.public),
        }
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "SigningKey({})", self.key_id)
    }
}

/// Issues the tokens of a suite.
#[derive(Clone, Debug)]
pub struct TokenIssuer(Realm);

impl TokenIssuer {
    /// Of the suite of a trust domain and namespace.
    pub fn new(trust_domain: &str, namespace: &str) -> Self {
        Self(Realm::new(trust_domain, namespace))
    }

    /// A token of a user, and when it expires.
    pub fn issue(
        &self,
        key: &SigningKey,
        user_id: Uuid,
        role: Role,
        now: Timestamp,
    ) -> Result<(String, Timestamp), InvalidKey> {
        let issued = now.as_micros().div_euclid(1_000_000);
        let expires = issued.saturating_add_unsigned(ACCESS_TOKEN_LIFETIME.as_secs());
        let claims = Claims {
            iss: self.0.issuer.clone(),
            aud: self.0.audience.clone(),
            sub: user_id,
            role,
            iat: issued,
            exp: expires,
        };
        let header = Header {
            typ: Some(TYPE.to_owned()),
            kid: Some(key.key_id.clone()),
            ..Header::new(Algorithm::EdDSA)
        };
        let token =
            jsonwebtoken::encode(&header, &claims, &key.encoding).map_err(|_| InvalidKey)?;
        Ok((token, Timestamp::from_micros(expires.saturating_mul(1_000_000))))
    }
}

type Fetch = dyn Fn() -> BoxFuture<'static, Result<Vec<JsonWebKey>, Status>> + Send + Sync;

/// The keys that tokens are verified with. Cheap to clone.
#[derive(Clone)]
pub struct TokenKeys {
    fetch: Arc<Fetch>,
    known: Arc<watch::Sender<Known>>,
}

#[derive(Default)]
struct Known {
    keys: HashMap<String, DecodingKey>,
    /// When they were last asked for.
    asked: Option<Instant>,
    /// Whether that is still under way.
    is_asking: bool,
    /// Whether there was an answer.
    is_current: bool,
}

impl TokenKeys {
    /// The keys that `fetch` gets.
    pub fn new(
        fetch: impl Fn() -> BoxFuture<'static, Result<Vec<JsonWebKey>, Status>> + Send + Sync + 'static,
    ) -> Self {
        Self { fetch: Arc::new(fetch), known: Arc::default() }
    }

    /// The keys that user-service publishes, behind this channel.
    pub fn published(user_service: Channel) -> Self {
        let client = AuthServiceClient::new(user_service);
        Self::new(move || {
            let mut client = client.clone();
            Box::pin(async move {
                let keys = client.get_json_web_key_set(GetJsonWebKeySetRequest {}).await?;
                Ok(keys.into_inner().keys)
            })
        })
    }

    /// The key of this name. Keys are asked for again when they are old, or when this
    /// one is not among them. Only who needs a key that is not known waits for the
    /// answer; one that is known goes on, however long nobody answers.
    async fn get(&self, key_id: &str) -> Result<Option<DecodingKey>, Status> {
        let mut found = None;
        self.known.send_if_modified(|known| {
            found = known.keys.get(key_id).cloned();
            let good_for = if found.is_some() { KEYS_MAX_AGE } else { KEYS_MIN_AGE };
            if !known.is_asking && known.asked.is_none_or(|asked| asked.elapsed() >= good_for) {
                known.is_asking = true;
                known.asked = Some(Instant::now());
                // A task of its own: a caller that goes away must not end what all wait for.
                tokio::spawn(self.clone().ask());
            }
            false
        });
        if found.is_some() {
            return Ok(found);
        }
        let mut known = self.known.subscribe();
        // It cannot close while this is here.
        let known = known.wait_for(|known| !known.is_asking).await.map_err(|_| unverifiable())?;
        match known.keys.get(key_id) {
            None if !known.is_current => Err(unverifiable()),
            key => Ok(key.cloned()),
        }
    }

    async fn ask(self) {
        let fetched = timeout(KEYS_PATIENCE, (self.fetch)()).await;
        let fetched = fetched.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer")));
        self.known.send_modify(|known| {
            known.is_asking = false;
            known.is_current = fetched.is_ok();
            match fetched {
                Ok(keys) => known.keys = keys.iter().filter_map(decoding_key).collect(),
                Err(status) => tracing::warn!(%status, "nobody has the keys of tokens"),
            }
        });
    }
}

fn unverifiable() -> Status {
    Status::unavailable("tokens cannot be verified now; repeat the call")
}

fn decoding_key(key: &JsonWebKey) -> Option<(String, DecodingKey)> {
    Some((key.kid.clone(), DecodingKey::from_ed_components(&key.x).ok()?))
}

impl fmt::Debug for TokenKeys {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("TokenKeys").finish_non_exhaustive()
    }
}

/// What a call carries as the proof of its end user, whatever it is worth.
#[derive(Debug)]
pub(crate) enum Proof {
    /// Nothing at all.
    Absent,
    /// One token.
    Token(Token),
    /// More than one, of which nobody knows which is meant.
    Ambiguous,
}

impl Proof {
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        match Token::of(headers) {
            Some(token) => Self::Token(token),
            None if headers.contains_key(AUTHORIZATION) => Self::Ambiguous,
            None => Self::Absent,
        }
    }

    pub(crate) fn into_token(self) -> Option<Token> {
        if let Self::Token(token) = self { Some(token) } else { None }
    }
}

/// Verifies the tokens of a suite.
#[derive(Clone, Debug)]
pub(crate) struct Verifier {
    pub(crate) realm: Realm,
    pub(crate) keys: TokenKeys,
    pub(crate) clock: Clock,
}

impl Verifier {
    /// The end user whom a token proves.
    pub(crate) async fn verify(&self, token: &Token) -> Result<EndUser, Status> {
        let token =
            token.bearer().filter(|token| token.len() <= LONGEST_TOKEN).ok_or_else(invalid)?;
        let header = jsonwebtoken::decode_header(token).map_err(|_| invalid())?;
        // Another kind of token that the same keys sign is no access token (RFC 9068,
        // section 4).
        let is_ours = header.alg == Algorithm::EdDSA && header.typ.as_deref() == Some(TYPE);
        let key_id = header.kid.filter(|_| is_ours).ok_or_else(invalid)?;
        let key = self.keys.get(&key_id).await?.ok_or_else(invalid)?;
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.set_issuer(&[&self.realm.issuer]);
        validation.set_audience(&[&self.realm.audience]);
        // The library has a clock of its own; ours is below.
        validation.validate_exp = false;
        let claims =
            jsonwebtoken::decode::<Claims>(token, &key, &validation).map_err(|_| invalid())?.claims;
        let expire_time = Timestamp::from_micros(claims.exp.saturating_mul(1_000_000));
        if expire_time <= self.clock.now() {
            return Err(expired());
        }
        Ok(EndUser { id: claims.sub, role: claims.role, expire_time })
    }

    /// How long the proof of an end user still holds.
    pub(crate) fn remaining(&self, user: &EndUser) -> Duration {
        user.expire_time.saturating_since(self.clock.now())
    }
}

/// There is no token.
pub(crate) fn missing() -> Status {
    refusal(
        Code::Unauthenticated,
        "TOKEN_MISSING",
        "the call needs an end user; send the metadata `authorization: Bearer <token>` with the \
         access token that SignIn answered",
    )
}

/// There is something that is no token.
pub(crate) fn invalid() -> Status {
    refusal(
        Code::Unauthenticated,
        "TOKEN_INVALID",
        "the metadata `authorization` is not one valid token of this suite; send \
         `Bearer <token>` with the access token that SignIn answered",
    )
}

/// The token was good once.
pub(crate) fn expired() -> Status {
    refusal(
        Code::Unauthenticated,
        "TOKEN_EXPIRED",
        "the access token has expired; get a new one with RefreshToken or ExchangeApiKey",
    )
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use proptest::prelude::*;

    use super::*;

    const NOW: Timestamp = Timestamp::from_micros(1_800_000_000_000_000);

    fn key(name: &str, seed: u8) -> SigningKey {
        SigningKey::from_pkcs8(name, &SigningKey::generate(&[seed; 32]).unwrap()).unwrap()
    }

    fn realm() -> Realm {
        Realm::new("chandlery.local", "chandlery")
    }

    fn verifier(published: &SigningKey, now: Timestamp) -> Verifier {
        let published = published.public_key();
        let keys = TokenKeys::new(move || {
            let published = published.clone();
            Box::pin(async move { Ok(vec![published]) })
        });
        Verifier { realm: realm(), keys, clock: Clock::new(move || now) }
    }

    fn bearer(token: &str) -> Token {
        let value = format!("Bearer {token}").parse().unwrap();
        Token::of(&[(http::header::AUTHORIZATION, value)].into_iter().collect()).unwrap()
    }

    async fn reason(verifier: &Verifier, token: &str) -> String {
        crate::reason(&verifier.verify(&bearer(token)).await.unwrap_err()).unwrap()
    }

    #[tokio::test]
    async fn a_token_proves_its_user_until_it_expires() {
        let (key, user_id) = (key("a", 1), Uuid::from_u128(7));
        let issuer = TokenIssuer(realm());
        let (token, expire_time) = issuer.issue(&key, user_id, Role::Staff, NOW).unwrap();
        assert_eq!(expire_time, NOW.saturating_add(ACCESS_TOKEN_LIFETIME));
        let user = verifier(&key, NOW).verify(&bearer(&token)).await.unwrap();
        assert_eq!(user, EndUser { id: user_id, role: Role::Staff, expire_time });
        assert_eq!(reason(&verifier(&key, expire_time), &token).await, "TOKEN_EXPIRED");
    }

    #[tokio::test]
    async fn a_token_of_another_key_suite_type_or_algorithm_proves_nothing() {
        let own = key("a", 1);
        let issue = |realm: Realm, key: &SigningKey| {
            TokenIssuer(realm).issue(key, Uuid::from_u128(7), Role::Staff, NOW).unwrap().0
        };
        let good = issue(realm(), &own);
        assert!(verifier(&own, NOW).verify(&bearer(&good)).await.is_ok());

        let claims = good.split('.').nth(1).unwrap();
        let claims: Claims =
            serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap();
        let encode = |header: Header, key: &EncodingKey| {
            let header = Header { kid: Some("a".to_owned()), ..header };
            jsonwebtoken::encode(&header, &claims, key).unwrap()
        };
        // The public key as the secret of a symmetric signature.
        let secret = EncodingKey::from_secret(&own.public);
        let typed =
            |typ: &str, algorithm| Header { typ: Some(typ.to_owned()), ..Header::new(algorithm) };
        let unsigned = format!(r#"{{"alg":"none","typ":"{TYPE}","kid":"a"}}"#);
        let unsigned = BASE64_URL_SAFE_NO_PAD.encode(unsigned);
        let Realm { issuer, audience } = realm();
        for bad in [
            issue(realm(), &key("a", 2)),
            issue(realm(), &key("b", 1)),
            issue(Realm { issuer: "elsewhere".to_owned(), audience }, &own),
            issue(Realm { issuer, audience: "elsewhere".to_owned() }, &own),
            encode(typed("JWT", Algorithm::EdDSA), &own.encoding),
            encode(typed(TYPE, Algorithm::HS256), &secret),
            format!("{unsigned}.{}.", good.split('.').nth(1).unwrap()),
            good.replace('.', "!"),
            format!("{good}{}", "x".repeat(LONGEST_TOKEN)),
            String::new(),
        ] {
            assert_eq!(reason(&verifier(&own, NOW), &bad).await, "TOKEN_INVALID", "{bad}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_sent_as_a_token_proves_nothing(
            text in prop_oneof![
                "\\PC{0,60}",
                "[A-Za-z0-9_-]{0,40}(\\.[A-Za-z0-9_-]{0,40}){0,4}",
            ],
            place in any::<prop::sample::Index>(),
            letter in "[A-Za-z0-9_.-]",
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
            runtime.unwrap().block_on(async {
                let key = key("a", 1);
                let verifier = verifier(&key, NOW);
                let good = TokenIssuer(realm()).issue(&key, Uuid::nil(), Role::Staff, NOW).unwrap().0;
                let mut forged = good.clone();
                let place = place.index(good.len());
                forged.replace_range(place..=place, &letter);
                for text in [text, forged].into_iter().filter(|text| *text != good) {
                    let Ok(value) = format!("Bearer {text}").parse() else { continue };
                    let headers = [(http::header::AUTHORIZATION, value)].into_iter().collect();
                    let refused = verifier.verify(&Token::of(&headers).unwrap()).await.unwrap_err();
                    assert_eq!(crate::reason(&refused).as_deref(), Some("TOKEN_INVALID"), "{text}");
                }
            });
        }
    }

    #[tokio::test(start_paused = true)]
    async fn keys_are_asked_for_when_old_or_unknown_and_at_most_once_a_second() {
        let asked = Arc::new(AtomicUsize::new(0));
        let public = key("a", 1).public_key();
        let keys = TokenKeys::new({
            let asked = Arc::clone(&asked);
            move || {
                let (asked, public) = (Arc::clone(&asked), public.clone());
                Box::pin(async move {
                    match asked.fetch_add(1, Ordering::Relaxed) {
                        0 => Err(Status::unavailable("away")),
                        1 => Ok(vec![public]),
                        _ => Err(Status::unavailable("away again")),
                    }
                })
            }
        });
        assert_eq!(keys.get("a").await.unwrap_err().code(), Code::Unavailable);
        assert_eq!(keys.get("a").await.unwrap_err().code(), Code::Unavailable);
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        tokio::time::advance(KEYS_MIN_AGE).await;
        assert!(keys.get("a").await.unwrap().is_some());
        assert!(keys.get("b").await.unwrap().is_none());
        assert_eq!(asked.load(Ordering::Relaxed), 2);
        tokio::time::advance(KEYS_MAX_AGE).await;
        assert!(keys.get("a").await.unwrap().is_some(), "an old key is better than none");
        tokio::task::yield_now().await;
        assert_eq!(asked.load(Ordering::Relaxed), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_that_is_known_goes_on_while_nobody_answers() {
        let public = key("a", 1).public_key();
        let is_first = std::sync::atomic::AtomicBool::new(true);
        let keys = TokenKeys::new(move || {
            let public = public.clone();
            if is_first.swap(false, Ordering::Relaxed) {
                Box::pin(async { Ok(vec![public]) })
            } else {
                Box::pin(std::future::pending())
            }
        });
        assert!(keys.get("a").await.unwrap().is_some());
        tokio::time::advance(KEYS_MAX_AGE).await;
        let begun = Instant::now();
        // One who needs another key waits, is given up, and holds nobody up.
        assert!(timeout(KEYS_MIN_AGE, keys.get("b")).await.is_err());
        assert!(keys.get("a").await.unwrap().is_some());
        assert_eq!(begun.elapsed(), KEYS_MIN_AGE);
        assert_eq!(keys.get("b").await.unwrap_err().code(), Code::Unavailable);
        assert!(begun.elapsed() <= KEYS_PATIENCE);
    }
}
