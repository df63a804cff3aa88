//! Discovery: which addresses a target has now.
//!
//! A name is asked of the resolver of the system and not of a library, so that
//! `/etc/hosts`, `nsswitch.conf` and the `search` and `ndots` of a pod mean what they mean
//! to every other program. It does not tell how long an answer is good for, hence the
//! floor and the ceiling; and it blocks a thread until it gives up, hence one question
//! at a time.

use std::{future::Future, io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use tokio::{
    net::lookup_host,
    sync::{Notify, watch},
    time::{Instant, sleep_until, timeout, timeout_at},
};

use crate::target::{Address, Name, Place, Target};

/// How soon a name may be asked for again: when a replica goes, all its callers ask, and a
/// question of each per second is nothing to a resolver.
const FLOOR: Duration = Duration::from_secs(1);

/// How long an answer counts when nothing hints at a change, and so how long a new replica
/// goes unnoticed: twice the time for which CoreDNS hands out what it knows.
const CEILING: Duration = Duration::from_secs(10);

/// How long an answer may take before there is said to be none, as in `resolv.conf`.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// What is known of the addresses of a target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Discovered {
    /// The addresses of the last good answer, each of them once; none until there has
    /// been an answer, and an empty set if the only answers were bad.
    pub(crate) addresses: Option<Arc<[Address]>>,
    /// Why the last answer was bad.
    pub(crate) error: Option<String>,
}

/// Follows the addresses of a target for as long as anybody receives them.
///
/// Whoever loses an endpoint calls `lost.notify_one()`, and the target is asked about
/// soon. Must be called in a tokio runtime.
pub(crate) fn follow(target: &Target, lost: Arc<Notify>) -> watch::Receiver<Discovered> {
    let discovered = match target.place() {
        Place::Fixed(addresses) => {
            Discovered { addresses: Some(Arc::clone(addresses)), error: None }
        }
        Place::Dns(_) => Discovered::default(),
    };
    let (sender, receiver) = watch::channel(discovered);
    let target = target.clone();
    tokio::spawn(async move {
        let ask = async {
            match target.place() {
                Place::Fixed(_) => std::future::pending().await,
                Place::Dns(name) => keep_asking(name, || lookup(name), &lost, &sender).await,
            }
        };
        tokio::select! {
            () = sender.closed() => {}
            () = ask => {}
        }
    });
    receiver
}

async fn lookup(name: &Name) -> io::Result<Vec<SocketAddr>> {
    Ok(lookup_host(name.as_str()).await?.collect())
}

/// Asks for ever.
async fn keep_asking<F>(
    name: &Name,
    mut lookup: impl FnMut() -> F,
    lost: &Notify,
    sender: &watch::Sender<Discovered>,
) where
    F: Future<Output = io::Result<Vec<SocketAddr>>>,
{
    loop {
        let asked = Instant::now();
        let mut answer = pin!(lookup());
        let answer = if let Ok(answer) = timeout(LOOKUP_TIMEOUT, &mut answer).await {
            answer
        } else {
            record(name, Err(format!("no answer within {LOOKUP_TIMEOUT:?}")), sender);
            answer.await
        };
        record(name, judge(answer), sender);

        // What nobody can be called at is asked for as often as allowed.
        let nowhere = sender.borrow().addresses.as_deref().is_none_or(<[_]>::is_empty);
        sleep_until(asked + FLOOR).await;
        if !nowhere {
            // Either way it is time.
            let _ = timeout_at(asked + CEILING, lost.notified()).await;
        }
    }
}

fn judge(answer: io::Result<Vec<SocketAddr>>) -> Result<Vec<SocketAddr>, String> {
    let mut addresses = answer.map_err(|error| error.to_string())?;
    if addresses.is_empty() {
        return Err("the name has no addresses".to_owned());
    }
    addresses.sort_unstable();
    addresses.dedup();
    Ok(addresses)
}

/// Lets a good answer count, or says why there is none; wakes nobody if that is no news.
fn record(
    name: &Name,
    answer: Result<Vec<SocketAddr>, String>,
    sender: &watch::Sender<Discovered>,
) {
    sender.send_if_modified(|known| {
        let new = match answer {
            Ok(addresses) => {
                let addresses = addresses.into_iter().map(|address| name.at(address)).collect();
                Discovered { addresses: Some(addresses), error: None }
            }
            Err(error) => Discovered {
                addresses: Some(known.addresses.clone().unwrap_or_default()),
                error: Some(error),
            },
        };
        match (&known.error, &new.error) {
            (None, Some(error)) => {
                tracing::warn!(name = name.as_str(), %error, "not found; the last answer still counts");
            }
            (Some(_), None) => tracing::info!(name = name.as_str(), "found again"),
            _ => {}
        }
        let is_news = *known != new;
        *known = new;
        is_news
    });
}

#[cfg(test)]
mod tests {
    use std::{
        collections::VecDeque,
        sync::{Mutex, Weak},
    };

    use tokio::{
        task::yield_now,
        time::{advance, sleep},
    };
    use tracing_subscriber::fmt::MakeWriter;

    use super::*;

    /// A resolver that gives scripted answers, the last of them for ever.
    struct Resolver {
        lost: Arc<Notify>,
        asked: Arc<Mutex<Vec<Instant>>>,
        began: Instant,
        known: watch::Receiver<Discovered>,
    }

    type Answer = (Duration, Result<&'static [&'static str], &'static str>);

    const AT_ONCE: Duration = Duration::ZERO;

    impl Resolver {
        fn start(answers: &[Answer]) -> Self {
            let (lost, asked) = (Arc::new(Notify::new()), Arc::new(Mutex::new(Vec::new())));
            let (sender, known) = watch::channel(Discovered::default());
            let mut script: VecDeque<_> = answers.iter().copied().collect();
            let (heard, seen) = (Arc::clone(&lost), Arc::clone(&asked));
            tokio::spawn(async move {
                let name = "shop:1".parse().unwrap();
                let lookup = || {
                    seen.lock().unwrap().push(Instant::now());
                    let (delay, answer) =
                        if script.len() > 1 { script.pop_front().unwrap() } else { script[0] };
                    async move {
                        sleep(delay).await;
                        let addresses = answer.map_err(io::Error::other)?;
                        Ok(addresses.iter().map(|address| address.parse().unwrap()).collect())
                    }
                };
                keep_asking(&name, lookup, &heard, &sender).await;
            });
            Self { lost, asked, began: Instant::now(), known }
        }

        /// When it was asked so far.
        async fn asked_within(&self, millis: u64) -> Vec<Duration> {
            sleep_until(self.began + Duration::from_millis(millis)).await;
            self.asked.lock().unwrap().iter().map(|it| it.duration_since(self.began)).collect()
        }

        /// What is known, as a person would write it.
        async fn known_at(&self, millis: u64) -> String {
            sleep_until(self.began + Duration::from_millis(millis)).await;
            let Discovered { addresses, error } = self.known.borrow().clone();
            let addresses = addresses.map_or("?".to_owned(), |addresses| {
                addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
            });
            format!("{addresses}|{}", error.unwrap_or_default())
        }
    }

    fn millis(times: &[u64]) -> Vec<Duration> {
        times.iter().copied().map(Duration::from_millis).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_sorted_and_names_each_address_once() {
        let resolver = Resolver::start(&[(
            Duration::from_millis(1_500),
            Ok(&["10.0.0.20:1", "10.0.0.3:1", "10.0.0.20:1", "[::1]:1"]),
        )]);
        assert_eq!(resolver.known_at(1_000).await, "?|");
        assert_eq!(resolver.known_at(2_000).await, "10.0.0.3:1 10.0.0.20:1 [::1]:1|");
        let known = resolver.known.borrow();
        let address = &known.addresses.as_ref().unwrap()[0];
        assert_eq!(address.authority(), "shop:1");
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_is_asked_for_every_ten_seconds() {
        let resolver = Resolver::start(&[(AT_ONCE, Ok(&["10.0.0.1:1"]))]);
        assert_eq!(resolver.asked_within(25_000).await, millis(&[0, 10_000, 20_000]));
    }

    #[tokio::test(start_paused = true)]
    async fn an_endpoint_that_is_lost_is_asked_about_at_most_once_a_second() {
        let resolver = Resolver::start(&[(AT_ONCE, Ok(&["10.0.0.1:1"]))]);
        sleep(Duration::from_millis(100)).await;
        for _ in 0..29 {
            resolver.lost.notify_one();
            sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(resolver.asked_within(9_000).await, millis(&[0, 1_000, 2_000, 3_000]));
        resolver.lost.notify_one();
        assert_eq!(resolver.asked_within(10_000).await, millis(&[0, 1_000, 2_000, 3_000, 9_000]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_bad_answer_keeps_the_last_good_one() {
        let resolver = Resolver::start(&[
            (AT_ONCE, Ok(&["10.0.0.1:1"])),
            (AT_ONCE, Err("no network")),
            (AT_ONCE, Ok(&[])),
            (AT_ONCE, Ok(&["10.0.0.2:1"])),
        ]);
        assert_eq!(resolver.known_at(1_000).await, "10.0.0.1:1|");
        assert_eq!(resolver.known_at(11_000).await, "10.0.0.1:1|no network");
        assert_eq!(resolver.known_at(21_000).await, "10.0.0.1:1|the name has no addresses");
        assert_eq!(resolver.known_at(31_000).await, "10.0.0.2:1|");
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_without_addresses_is_asked_for_every_second() {
        let resolver = Resolver::start(&[
            (AT_ONCE, Ok(&[])),
            (AT_ONCE, Err("no such name")),
            (AT_ONCE, Ok(&["10.0.0.1:1"])),
        ]);
        assert_eq!(resolver.known_at(500).await, "|the name has no addresses");
        assert_eq!(resolver.known_at(1_500).await, "|no such name");
        assert_eq!(resolver.known_at(3_000).await, "10.0.0.1:1|");
        assert_eq!(resolver.asked_within(11_000).await, millis(&[0, 1_000, 2_000]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_resolver_that_hangs_is_waited_for_and_not_asked_again_meanwhile() {
        let resolver = Resolver::start(&[
            (AT_ONCE, Ok(&["10.0.0.1:1"])),
            (Duration::from_mins(1), Ok(&["10.0.0.2:1"])),
        ]);
        assert_eq!(resolver.known_at(14_000).await, "10.0.0.1:1|");
        assert_eq!(resolver.known_at(16_000).await, "10.0.0.1:1|no answer within 5s");
        assert_eq!(resolver.asked_within(69_000).await, millis(&[0, 10_000]));
        resolver.lost.notify_one();
        assert_eq!(resolver.known_at(71_000).await, "10.0.0.2:1|");
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_answer_is_no_news() {
        let mut resolver = Resolver::start(&[(AT_ONCE, Ok(&["10.0.0.1:1"]))]);
        resolver.known.changed().await.unwrap();
        resolver.asked_within(100_000).await;
        assert!(!resolver.known.has_changed().unwrap());
    }

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for Log {
        type Writer = Self;

        fn make_writer(&self) -> Self {
            self.clone()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_logged_once_and_so_is_its_end() {
        let log = Log::default();
        let subscriber = tracing_subscriber::fmt().with_writer(log.clone()).finish();
        let _guard = tracing::subscriber::set_default(subscriber);
        let resolver = Resolver::start(&[
            (AT_ONCE, Err("no network")),
            (AT_ONCE, Err("no network")),
            (AT_ONCE, Err("another reason")),
            (AT_ONCE, Ok(&["10.0.0.1:1"])),
        ]);
        resolver.asked_within(60_000).await;
        let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        assert_eq!(log.lines().count(), 2, "{log}");
    }

    #[tokio::test]
    async fn the_name_of_this_machine_is_found_and_followed_while_anybody_cares() {
        let lost = Arc::new(Notify::new());
        let mut known = follow(&"dns:///localhost:7".parse().unwrap(), Arc::clone(&lost));
        known.wait_for(|known| known.addresses.is_some()).await.unwrap();
        let found = known.borrow().clone();
        assert_eq!(found.error, None);
        assert!(found.addresses.unwrap().iter().all(|it| it.authority() == "localhost:7"));

        let task: Weak<_> = Arc::downgrade(&lost);
        drop((known, lost));
        while task.strong_count() > 0 {
            yield_now().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_configuration_names_is_known_for_ever() {
        let target = "static:///a:1,b:2".parse().unwrap();
        let mut known = follow(&target, Arc::new(Notify::new()));
        assert_eq!(known.borrow().addresses.as_ref().map(|it| it.len()), Some(2));
        advance(Duration::from_hours(1)).await;
        assert!(timeout(CEILING, known.changed()).await.is_err());
    }
}
