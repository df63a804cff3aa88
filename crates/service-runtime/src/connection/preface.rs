//! What a client says first in HTTP/2 (RFC 9113, section 3.4). It is read here, since
//! hyper waits for it for ever.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

const MAGIC: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEAD_LENGTH: usize = 9;
const SETTINGS: u8 = 4;
/// The longest frame that may be sent to whoever has not allowed longer ones.
const FRAME_LIMIT: usize = 16 << 10;

/// Reads the magic and the SETTINGS frame that follows it, and gives back what was
/// read, which may be more. Fails as soon as it is something else.
pub(super) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut read = Vec::with_capacity(256);
    while !is_whole(&read)? {
        if stream.read_buf(&mut read).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(read)
}

fn is_whole(read: &[u8]) -> io::Result<bool> {
    let no_preface = || io::Error::new(io::ErrorKind::InvalidData, "no preface of HTTP/2");
    let (magic, frame) = read.split_at(read.len().min(MAGIC.len()));
    if !MAGIC.starts_with(magic) {
        return Err(no_preface());
    }
    let Some([a, b, c, kind, ..]) = frame.first_chunk::<FRAME_HEAD_LENGTH>() else {
        return Ok(false);
    };
    let length = [a, b, c].iter().fold(0, |length, byte| length << 8 | usize::from(**byte));
    if *kind != SETTINGS || length > FRAME_LIMIT {
        return Err(no_preface());
    }
    Ok(frame.len() >= FRAME_HEAD_LENGTH + length)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn outcome(sent: &[u8]) -> Result<Vec<u8>, io::ErrorKind> {
        read(&mut &*sent).await.map_err(|error| error.kind())
    }

    #[tokio::test]
    async fn a_preface_is_the_magic_and_a_whole_frame_of_settings() {
        let settings = [0, 0, 6, SETTINGS, 0, 0, 0, 0, 0, 0, 4, 0, 1, 0, 0];
        let whole = [&MAGIC[..], &settings, b"more"].concat();
        assert_eq!(outcome(&whole).await, Ok(whole.clone()));
        for length in 0..whole.len() - 4 {
            let cut = outcome(&whole[..length]).await;
            assert_eq!(cut, Err(io::ErrorKind::UnexpectedEof), "{length}");
        }
    }

    #[tokio::test]
    async fn anything_else_is_refused_before_more_of_it_comes() {
        let ping = [&MAGIC[..], &[0, 0, 8, 6, 0, 0, 0, 0, 0]].concat();
        let long = [&MAGIC[..], &[1, 0, 0, SETTINGS, 0, 0, 0, 0, 0]].concat();
        for sent in [b"GET / HTTP/1.1\r\n", &b"PRI * HTTP/1.1"[..], &[0], &ping, &long] {
            assert_eq!(outcome(sent).await, Err(io::ErrorKind::InvalidData), "{sent:?}");
        }
    }
}
