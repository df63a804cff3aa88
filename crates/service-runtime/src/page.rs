//! Pages of a list (<https://google.aip.dev/158>), and streams that are taken up again:
//! a token is the place of the last thing that was seen, bound to the request that it
//! continues.

use std::future::Future;

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use futures::{Stream, TryStreamExt, stream};
use prost::Message;
use uuid::Uuid;

use crate::{Fields, config::Reported};

/// How many bytes of rows a page may hold: a message may have 4 MiB, and the rest of the
/// answer needs room.
const MOST_BYTES: usize = 3 << 20;

/// Which rows of a list are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// At most so many.
    pub size: u32,
    /// Those after this key; none for the first ones.
    pub after: Option<Uuid>,
}

impl Page {
    /// The key of the row before the page as databases store it; empty before the
    /// first row, which sorts before every key.
    pub fn after_bytes(&self) -> Vec<u8> {
        self.after.map(|after| after.as_bytes().to_vec()).unwrap_or_default()
    }

    /// The rows of this page and of all after it. A page is read when the one before it
    /// has been taken, so that a slow reader holds the database back and memory stays
    /// flat.
    pub fn stream<T, E, F>(
        self,
        mut read: impl FnMut(Self) -> F,
    ) -> impl Stream<Item = Result<T, E>>
    where
        F: Future<Output = Result<Paged<T>, E>>,
    {
        let pages = stream::try_unfold(Some(self), move |page| {
            let reading = page.map(|page| (page, read(page)));
            async move {
                let Some((page, reading)) = reading else { return Ok(None) };
                let Paged { rows, next } = reading.await?;
                let next = next.map(|after| Self { after: Some(after), ..page });
                Ok(Some((stream::iter(rows.into_iter().map(Ok)), next)))
            }
        });
        pages.try_flatten()
    }
}

/// The rows of a page, and whether there are more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paged<T> {
    /// The rows.
    pub rows: Vec<T>,
    /// The key after which the next page begins; none on the last.
    pub next: Option<Uuid>,
}

impl<T> Paged<T> {
    /// A page from one row more than it holds, the way to learn whether there are
    /// more without counting.
    pub fn from_surplus(mut rows: Vec<T>, size: u32, key: impl Fn(&T) -> Uuid) -> Self {
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let more = rows.len() > size;
        rows.truncate(size);
        let next = rows.last().filter(|_| more).map(key);
        Self { rows, next }
    }

    /// The page as it is sent. It ends before a row that would make it larger than a
    /// message may be: a page may hold fewer rows than were asked for.
    pub fn into_messages<M: Message + From<T>>(self, key: impl Fn(&T) -> Uuid) -> Paged<M> {
        let mut page = Paged { rows: Vec::with_capacity(self.rows.len()), next: None };
        let mut bytes = 0;
        for row in self.rows {
            let id = key(&row);
            let message = M::from(row);
            bytes += message.encoded_len();
            if bytes > MOST_BYTES && page.next.is_some() {
                return page;
            }
            page.rows.push(message);
            page.next = Some(id);
        }
        Paged { next: self.next, ..page }
    }
}

/// Makes and reads the tokens of one list, so that a token cannot continue another.
#[derive(Debug)]
pub struct PageTokens<'a>([&'a str; 2]);

impl<'a> PageTokens<'a> {
    /// The tokens of a list: its RPC, and the parameter that chooses its rows.
    pub const fn new(list: [&'a str; 2]) -> Self {
        Self(list)
    }

    /// Reads the page that a request asks for.
    pub fn page(
        &self,
        fields: &mut Fields,
        page_size: i32,
        default_size: u32,
        page_token: &str,
    ) -> Result<Page, Reported> {
        let size = fields.page_size(page_size, default_size);
        let after = match self.decode(page_token) {
            _ if page_token.is_empty() => Ok(None),
            Some(after) => Ok(Some(after)),
            None => Err(fields.refuse(
                "page_token",
                "does not continue this request; send the next_page_token of the page before \
                 with the same parameters, or nothing for the first page",
            )),
        };
        Ok(Page { size: size?, after: after? })
    }

    /// The token of the page after `next`; empty if there is none.
    pub fn token(&self, next: Option<Uuid>) -> String {
        next.map(|next| Binding::to(&self.0).seal(next.as_bytes())).unwrap_or_default()
    }

    fn decode(&self, token: &str) -> Option<Uuid> {
        Binding::to(&self.0).open(token).map(Uuid::from_bytes)
    }
}

/// Makes and reads the tokens of one stream, so that a token cannot take up another. A
/// place in it is two numbers that mean something to the stream alone.
#[derive(Clone, Copy, Debug)]
pub struct ResumeTokens(Binding);

impl ResumeTokens {
    /// The tokens of a stream: its RPC, the database that its places are in, and the
    /// parameter that chooses what is in it.
    pub fn new(stream: [&str; 3]) -> Self {
        Self(Binding::to(&stream))
    }

    /// Reads the place after which a request goes on; none if it begins anew. A place that
    /// the stream has not come to is refused: a database that was restored from a copy has
    /// not come to all that was told before.
    pub fn place(
        &self,
        fields: &mut Fields,
        resume_token: &str,
        is_reached: impl FnOnce(&[i64; 2]) -> bool,
    ) -> Result<Option<[i64; 2]>, Reported> {
        if resume_token.is_empty() {
            return Ok(None);
        }
        let place = self.0.open::<16>(resume_token).map(|bytes| {
            let (numbers, _) = bytes.as_chunks();
            [i64::from_be_bytes(numbers[0]), i64::from_be_bytes(numbers[1])]
        });
        place.filter(is_reached).map(Some).ok_or_else(|| {
            fields.refuse(
                "resume_token",
                "does not continue this request; send the last resume_token of a stream with the \
                 same parameters, or nothing to begin anew",
            )
        })
    }

    /// The token that goes on after a place.
    pub fn token(&self, place: [i64; 2]) -> String {
        self.0.seal(place.map(i64::to_be_bytes).as_flattened())
    }
}

/// What ties a token to the request that it continues.
#[derive(Clone, Copy, Debug)]
struct Binding([u8; 8]);

impl Binding {
    fn to(request: &[&str]) -> Self {
        let digest = digest(&SHA256, request.join("\0").as_bytes());
        let mut binding = [0; 8];
        binding.copy_from_slice(&digest.as_ref()[..8]);
        Self(binding)
    }

    fn seal(self, place: &[u8]) -> String {
        BASE64_URL_SAFE_NO_PAD.encode([&self.0, place].concat())
    }

    fn open<const N: usize>(self, token: &str) -> Option<[u8; N]> {
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(token).ok()?;
        bytes.strip_prefix(&self.0)?.try_into().ok()
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, future::ready};

    use futures::{FutureExt, StreamExt};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_stream_reads_page_by_page_and_none_before_it_is_wanted() {
        let reads = Cell::new(0);
        let read = |page: Page| {
            reads.set(reads.get() + 1);
            let first = page.after.map_or(1, |after| after.as_u128() + 1);
            let rows = (first..=5).map(Uuid::from_u128).take(3).collect();
            ready(Ok::<_, ()>(Paged::from_surplus(rows, page.size, |id| *id)))
        };
        let mut rows = Page { size: 2, after: None }.stream(read).map(Result::unwrap).boxed_local();
        let mut take = || rows.next().now_or_never().unwrap().map(|id| id.as_u128());
        assert_eq!((reads.get(), take(), take(), reads.get()), (0, Some(1), Some(2), 1));
        assert_eq!((take(), take(), reads.get()), (Some(3), Some(4), 2));
        assert_eq!((take(), take(), reads.get()), (Some(5), None, 3));
    }

    #[test]
    fn a_page_ends_before_it_is_larger_than_a_message_may_be() {
        let row = |id: u8| format!("{id}{}", "=".repeat(1 << 20));
        let id = |row: &String| Uuid::from_u128(row[..1].parse().unwrap());
        let page = |rows: Vec<String>, next| {
            let Paged { rows, next } = Paged { rows, next }.into_messages::<String>(id);
            (rows.iter().map(id).map(|id| id.as_u128()).collect::<Vec<_>>(), next)
        };
        let next = Some(Uuid::from_u128(9));
        assert_eq!(page((1..=2).map(row).collect(), next), (vec![1, 2], next));
        assert_eq!(page((1..=2).map(row).collect(), None), (vec![1, 2], None));
        let last = Some(Uuid::from_u128(2));
        assert_eq!(page((1..=5).map(row).collect(), next), (vec![1, 2], last));
        assert_eq!(page((1..=5).map(row).collect(), None), (vec![1, 2], last));
        assert_eq!(page(vec![row(7).repeat(4)], None), (vec![7], None), "it cannot be split");
        assert_eq!(page(Vec::new(), None), (vec![], None));
    }

    #[test]
    fn a_token_continues_its_own_request_and_no_other() {
        let mine = PageTokens::new(["ListPurchases", "mine"]);
        let yours = PageTokens::new(["ListPurchases", "yours"]);
        let last = Uuid::from_u128(7);
        let token = mine.token(Some(last));
        let mut fields = Fields::default();
        assert_eq!(
            mine.page(&mut fields, 10, 50, &token),
            Ok(Page { size: 10, after: Some(last) })
        );
        assert_eq!(yours.page(&mut fields, 10, 50, &token), Err(Reported));
        assert_eq!(mine.page(&mut fields, 10, 50, "nonsense"), Err(Reported));
        assert_eq!(fields.violations().count(), 2);
    }

    #[test]
    fn a_token_takes_up_its_own_stream_and_no_other() {
        let mine = ResumeTokens::new(["WatchProducts", "here", "mine"]);
        let yours = ResumeTokens::new(["WatchProducts", "here", "yours"]);
        let elsewhere = ResumeTokens::new(["WatchProducts", "elsewhere", "mine"]);
        let mut fields = Fields::default();
        for place in [[0, 0], [7, -1], [i64::MAX, i64::MIN]] {
            let token = mine.token(place);
            assert_eq!(mine.place(&mut fields, &token, |_| true), Ok(Some(place)));
            assert_eq!(mine.place(&mut fields, &token, |it| *it != place), Err(Reported));
            assert_eq!(yours.place(&mut fields, &token, |_| true), Err(Reported));
            assert_eq!(elsewhere.place(&mut fields, &token, |_| true), Err(Reported));
        }
        assert_eq!(mine.place(&mut fields, "", |_| true), Ok(None));
        assert_eq!(mine.place(&mut fields, "nonsense", |_| true), Err(Reported));
        assert_eq!(fields.violations().count(), 10);
    }

    proptest! {
        #[test]
        fn no_text_is_a_token_but_the_one_that_was_made(
            key: u128,
            place: [i64; 2],
            text in r"[A-Za-z0-9_=-]{0,40}|\PC{0,8}",
        ) {
            let pages = PageTokens::new(["ListUsers", ""]);
            let stream = ResumeTokens::new(["WatchProducts", "here", ""]);
            let mut fields = Fields::default();
            let key = Uuid::from_u128(key);
            let page = pages.page(&mut fields, 1, 50, &pages.token(Some(key)));
            prop_assert_eq!(page, Ok(Page { size: 1, after: Some(key) }));
            prop_assert_eq!(stream.place(&mut fields, &stream.token(place), |_| true), Ok(Some(place)));
            if let Ok(page) = pages.page(&mut fields, 1, 50, &text) {
                prop_assert_eq!(pages.token(page.after), text.clone());
            }
            if let Ok(Some(place)) = stream.place(&mut fields, &text, |_| true) {
                prop_assert_eq!(stream.token(place), text);
            }
        }
    }
}
