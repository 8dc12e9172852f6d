//! ZMTP 3, as a DEALER over a Unix socket with the NULL mechanism needs it: greeting, READY, PING, messages.
//!
//! Nothing here reads or writes a socket.

use bytes::{Buf, BufMut, Bytes, BytesMut};

const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;

/// Bytes of the greeting, in both directions.
pub const GREETING_BYTES: usize = 64;

/// Messages up to this size are copied out of the read buffer, so that a reply that is kept does not keep it.
const COPIED_BYTES: usize = 16 << 10;

/// No frame of a daemon is larger; a larger one means that the peer does not speak ZMTP.
const MAX_FRAME_BYTES: u64 = 1 << 40;

/// What a message may consist of, far beyond what MT1 allows.
const MAX_FRAMES: usize = 1 << 16;

/// The peer does not follow ZMTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProtocolError(pub &'static str);

/// Returns the greeting of a ZMTP 3.1 peer with the NULL mechanism.
pub fn greeting() -> [u8; GREETING_BYTES] {
    let mut greeting = [0; GREETING_BYTES];
    greeting[0] = 0xff;
    greeting[9] = 0x7f;
    greeting[10] = 3;
    greeting[11] = 1;
    greeting[12..16].copy_from_slice(b"NULL");
    greeting
}

/// Checks the peer's greeting.
pub fn check_greeting(greeting: &[u8; GREETING_BYTES]) -> Result<(), ProtocolError> {
    if greeting[0] != 0xff || greeting[9] & 1 == 0 || greeting[10] < 3 {
        return Err(ProtocolError("the peer does not speak ZMTP 3"));
    }
    if &greeting[12..17] != b"NULL\0" {
        return Err(ProtocolError("the peer does not use the NULL mechanism"));
    }
    Ok(())
}

/// Returns the READY command of a DEALER without an identity.
pub fn ready() -> Bytes {
    let mut body = BytesMut::new();
    body.put_slice(b"\x05READY");
    for (name, value) in [(&b"Socket-Type"[..], &b"DEALER"[..]), (b"Identity", b"")] {
        body.put_u8(name.len() as u8);
        body.put_slice(name);
        body.put_u32(value.len() as u32);
        body.put_slice(value);
    }
    command(&body)
}

/// Writes what precedes the bytes of a frame.
pub fn put_frame_head(output: &mut BytesMut, length: usize, more: bool) {
    let more = if more { MORE } else { 0 };
    if let Ok(short) = u8::try_from(length) {
        output.put_slice(&[more, short]);
    } else {
        output.put_u8(more | LONG);
        output.put_u64(length as u64);
    }
}

/// What a peer sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Incoming {
    /// A message's frames.
    Message(Vec<Bytes>),
    /// A command that must be answered with these bytes (a PONG for a PING).
    Answer(Bytes),
    /// READY.
    Ready,
}

/// Finds messages in the bytes of a connection, however they are cut.
#[derive(Default)]
pub struct Decoder {
    /// Frames of the message that is being read, as ranges of the buffer.
    frames: Vec<(usize, usize)>,
    /// Bytes of the buffer that have been read: `frames`, the heads before them, and commands between them.
    scanned: usize,
}

impl Decoder {
    /// Takes the next message or command off the buffer. `Ok(None)`: more bytes are needed.
    pub fn next(&mut self, buffer: &mut BytesMut) -> Result<Option<Incoming>, ProtocolError> {
        loop {
            let Some(head) = Head::read(&buffer[self.scanned..])? else { return Ok(None) };
            let start = self.scanned + head.bytes;
            let Some(end) = start.checked_add(head.length) else {
                return Err(ProtocolError("a frame is too large"));
            };
            if buffer.len() < end {
                buffer.reserve(end - buffer.len());
                return Ok(None);
            }
            if head.flags & COMMAND != 0 {
                if head.flags & MORE != 0 {
                    return Err(ProtocolError("a command has more than one frame"));
                }
                let incoming = read_command(&buffer[start..end])?;
                // ZeroMQ sends its commands when they are due, also between two frames of a message.
                if self.frames.is_empty() {
                    buffer.advance(end);
                } else {
                    self.scanned = end;
                }
                if let Some(incoming) = incoming {
                    return Ok(Some(incoming));
                }
                continue;
            }
            if self.frames.len() >= MAX_FRAMES {
                return Err(ProtocolError("a message has too many frames"));
            }
            self.frames.push((start, end));
            self.scanned = end;
            if head.flags & MORE == 0 {
                let taken = buffer.split_to(end);
                let whole = if end <= COPIED_BYTES { Bytes::copy_from_slice(&taken) } else { taken.freeze() };
                let frames = self.frames.drain(..).map(|(start, end)| whole.slice(start..end)).collect();
                self.scanned = 0;
                return Ok(Some(Incoming::Message(frames)));
            }
        }
    }
}

/// What precedes a frame: flags and length.
struct Head {
    flags: u8,
    bytes: usize,
    length: usize,
}

impl Head {
    fn read(input: &[u8]) -> Result<Option<Head>, ProtocolError> {
        let Some((&flags, rest)) = input.split_first() else { return Ok(None) };
        if flags & !(MORE | LONG | COMMAND) != 0 {
            return Err(ProtocolError("a frame has unknown flags"));
        }
        if flags & LONG == 0 {
            return Ok(rest.first().map(|&length| Head { flags, bytes: 2, length: usize::from(length) }));
        }
        let Some(length) = rest.first_chunk::<8>() else { return Ok(None) };
        let length = u64::from_be_bytes(*length);
        if length > MAX_FRAME_BYTES {
            return Err(ProtocolError("a frame is too large"));
        }
        Ok(Some(Head { flags, bytes: 9, length: length as usize }))
    }
}

fn read_command(body: &[u8]) -> Result<Option<Incoming>, ProtocolError> {
    let Some((&length, rest)) = body.split_first() else { return Err(ProtocolError("a command has no name")) };
    let Some((name, data)) = rest.split_at_checked(usize::from(length)) else {
        return Err(ProtocolError("a command has no name"));
    };
    match name {
        b"READY" => Ok(Some(Incoming::Ready)),
        // The first two bytes are the time after which the peer gives up; the rest is returned.
        b"PING" => {
            let mut pong = BytesMut::from(&b"\x04PONG"[..]);
            pong.put_slice(data.get(2..).unwrap_or_default());
            Ok(Some(Incoming::Answer(command(&pong))))
        }
        b"ERROR" => Err(ProtocolError("the peer refused the connection")),
        _ => Ok(None),
    }
}

fn command(body: &[u8]) -> Bytes {
    let mut output = BytesMut::with_capacity(body.len() + 9);
    if let Ok(short) = u8::try_from(body.len()) {
        output.put_slice(&[COMMAND, short]);
    } else {
        output.put_u8(COMMAND | LONG);
        output.put_u64(body.len() as u64);
    }
    output.put_slice(body);
    output.freeze()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encode(frames: &[Vec<u8>]) -> BytesMut {
        let mut output = BytesMut::new();
        for (index, frame) in frames.iter().enumerate() {
            put_frame_head(&mut output, frame.len(), index + 1 < frames.len());
            output.put_slice(frame);
        }
        output
    }

    #[test]
    fn a_ping_is_answered_with_its_context() {
        let mut decoder = Decoder::default();
        let mut buffer = BytesMut::from(&b"\x04\x0a\x04PING\x00\x0aabc"[..]);
        let answer = Bytes::from_static(b"\x04\x08\x04PONGabc");
        assert_eq!(decoder.next(&mut buffer), Ok(Some(Incoming::Answer(answer))));
        assert!(buffer.is_empty());
    }

    #[test]
    fn a_command_may_come_before_each_frame_of_a_message() {
        let pong = || Incoming::Answer(Bytes::from_static(b"\x04\x08\x04PONGabc"));
        let commands: [(&[u8], Vec<Incoming>); 4] = [
            (b"\x04\x0a\x04PING\x00\x0aabc", vec![pong()]),
            (b"\x04\x0a\x04PING\x00\x0aabc\x04\x0a\x04PING\x00\x0aabc", vec![pong(), pong()]),
            (b"\x04\x08\x04PONGabc", vec![]),
            (b"\x06\x00\x00\x00\x00\x00\x00\x00\x04\x03NEW", vec![]),
        ];
        let frames = [vec![], b"id".to_vec(), vec![7; 300], vec![8; 2 * COPIED_BYTES], vec![9]];
        for (command, answers) in &commands {
            for position in 0..frames.len() {
                let mut stream = BytesMut::new();
                for (index, frame) in frames.iter().enumerate() {
                    stream.put_slice(if index == position { command } else { b"" });
                    put_frame_head(&mut stream, frame.len(), index + 1 < frames.len());
                    stream.put_slice(frame);
                }
                stream.extend_from_slice(&encode(&[b"next".to_vec()]));
                let message = |frames: &[Vec<u8>]| Incoming::Message(frames.iter().cloned().map(Bytes::from).collect());
                let expected = [answers.clone(), vec![message(&frames), message(&[b"next".to_vec()])]].concat();
                for piece in [1, stream.len()] {
                    let (mut decoder, mut buffer, mut found) = (Decoder::default(), BytesMut::new(), Vec::new());
                    for bytes in stream.chunks(piece) {
                        buffer.extend_from_slice(bytes);
                        while let Some(incoming) = decoder.next(&mut buffer).unwrap() {
                            found.push(incoming);
                        }
                    }
                    assert!(found == expected, "{} before frame {position}", command.escape_ascii());
                    assert!(buffer.is_empty());
                }
            }
        }
    }

    #[test]
    fn ready_has_the_socket_type() {
        let mut buffer = BytesMut::from(&ready()[..]);
        assert_eq!(Decoder::default().next(&mut buffer), Ok(Some(Incoming::Ready)));
        assert!(ready().windows(6).any(|window| window == b"DEALER"));
    }

    #[test]
    fn what_is_not_zmtp_is_an_error() {
        let table: &[&[u8]] = &[
            b"HTTP/1.1 ",
            b"\x02\xff\xff\xff\xff\xff\xff\xff\xff",
            b"\x04\x00",
            b"\x04\x06\x05ERROR",
            b"\x05\x04\x03NEW",
        ];
        for bytes in table {
            assert!(Decoder::default().next(&mut BytesMut::from(*bytes)).is_err(), "{bytes:?}");
        }
        let mut other = greeting();
        other[10] = 1;
        assert!(check_greeting(&other).is_err());
        other = greeting();
        other[12..17].copy_from_slice(b"CURVE");
        assert!(check_greeting(&other).is_err());
        assert_eq!(check_greeting(&greeting()), Ok(()));
    }

    proptest! {
        #[test]
        fn messages_are_found_however_they_are_cut(
            messages in prop::collection::vec(prop::collection::vec(prop::collection::vec(any::<u8>(), 0..600), 1..6), 1..5),
            cuts in prop::collection::vec(1usize..700, 1..50),
        ) {
            let mut stream = BytesMut::new();
            for message in &messages {
                stream.extend_from_slice(&encode(message));
            }
            let (mut decoder, mut buffer, mut found) = (Decoder::default(), BytesMut::new(), Vec::new());
            let mut cuts = cuts.iter().cycle();
            while !stream.is_empty() {
                let size = (*cuts.next().unwrap()).min(stream.len());
                buffer.extend_from_slice(&stream.split_to(size));
                while let Some(incoming) = decoder.next(&mut buffer).unwrap() {
                    let Incoming::Message(frames) = incoming else { panic!("a command") };
                    found.push(frames.iter().map(|frame| frame.to_vec()).collect::<Vec<_>>());
                }
            }
            prop_assert_eq!(found, messages);
            prop_assert!(buffer.is_empty());
        }

        #[test]
        fn any_bytes_are_messages_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut decoder = Decoder::default();
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = decoder.next(&mut buffer) {}
        }
    }
}
