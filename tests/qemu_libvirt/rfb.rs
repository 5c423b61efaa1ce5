//! The first half of an RFB session: enough to log in (RFC 6143, 7.1 and 7.2.2).

use des::Des;
use des::cipher::generic_array::GenericArray;
use des::cipher::{BlockEncrypt, KeyInit};
use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

/// How the display answered.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Login {
    Accepted,
    Refused,
}

/// Logs in with a password; fails if the display offers anything but that.
pub(crate) fn login(display: impl ToSocketAddrs, password: &str) -> Login {
    let mut stream = TcpStream::connect(display).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    assert_eq!(&read::<12>(&mut stream), b"RFB 003.008\n");
    stream.write_all(b"RFB 003.008\n").unwrap();
    let [count] = read(&mut stream);
    let mut kinds = vec![0; usize::from(count)];
    stream.read_exact(&mut kinds).unwrap();
    assert_eq!(kinds, [2], "only VNC authentication is offered");
    stream.write_all(&[2]).unwrap();

    let mut answer = read::<16>(&mut stream);
    let mut key = [0; 8];
    for (key, byte) in key.iter_mut().zip(password.bytes()) {
        // RFB takes the bits of each byte in the other order.
        *key = byte.reverse_bits();
    }
    let cipher = Des::new(&GenericArray::from(key));
    for block in answer.chunks_exact_mut(8) {
        cipher.encrypt_block(GenericArray::from_mut_slice(block));
    }
    stream.write_all(&answer).unwrap();
    match u32::from_be_bytes(read(&mut stream)) {
        0 => Login::Accepted,
        _ => Login::Refused,
    }
}

fn read<const N: usize>(stream: &mut TcpStream) -> [u8; N] {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}
