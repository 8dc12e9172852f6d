//! Listening sockets that the daemon has bound.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use crate::settings::ListenerSettings;

/// A descriptor of a listening socket, before it belongs to an event loop.
pub struct Descriptor {
    fd: OwnedFd,
    unix: bool,
}

impl Descriptor {
    /// Takes over a descriptor that the daemon has passed on.
    pub fn from_settings(settings: &ListenerSettings) -> io::Result<Self> {
        let number = settings.fd;
        if number <= 2 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{number} is not the number of a listener"),
            ));
        }
        // SAFETY: only checks whether the number is that of an open descriptor.
        if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the daemon passes each descriptor to this process alone, and states it once in the settings.
        let fd = unsafe { OwnedFd::from_raw_fd(number) };
        let unix = match socket_option(&fd, libc::SO_DOMAIN)? {
            libc::AF_UNIX => true,
            libc::AF_INET | libc::AF_INET6 => false,
            _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "neither a tcp nor a unix socket")),
        };
        if socket_option(&fd, libc::SO_ACCEPTCONN)? != 1 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the socket does not listen"));
        }
        if !unix {
            find_lost_clients(&fd)?;
        }
        Ok(Self { fd, unix })
    }

    /// Makes a listener of it for the current tokio runtime. All of them share the queue of connections.
    pub fn listener(&self) -> io::Result<Listener> {
        let fd = self.fd.try_clone()?;
        if self.unix {
            let listener = std::os::unix::net::UnixListener::from(fd);
            listener.set_nonblocking(true)?;
            Ok(Listener::Unix(UnixListener::from_std(listener)?))
        } else {
            let listener = std::net::TcpListener::from(fd);
            listener.set_nonblocking(true)?;
            Ok(Listener::Tcp(TcpListener::from_std(listener)?))
        }
    }
}

/// A client whose machine is gone closes nothing. After so many seconds of silence the kernel asks it, so many times.
const SILENCE_S: libc::c_int = 60;
const QUESTION_INTERVAL_S: libc::c_int = 15;
const QUESTIONS: libc::c_int = 4;

/// Has the kernel close the connections of clients that are gone. A stream that only waits, such as a health check's
/// `Watch`, would otherwise keep its connection for ever. Accepted sockets inherit this from the listener.
fn find_lost_clients(fd: &OwnedFd) -> io::Result<()> {
    for (level, option, value) in [
        (libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1),
        (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, SILENCE_S),
        (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, QUESTION_INTERVAL_S),
        (libc::IPPROTO_TCP, libc::TCP_KEEPCNT, QUESTIONS),
    ] {
        let size = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: the pointer is to a variable of the size that is stated.
        if unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, (&raw const value).cast(), size) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

fn socket_option(fd: &OwnedFd, option: libc::c_int) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut size = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: both pointers are to variables of the sizes that are stated.
    let failed = unsafe {
        let value = (&raw mut value).cast();
        libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, option, value, &raw mut size)
    };
    if failed != 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

/// A listening socket of one event loop.
pub enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// A connection that was accepted.
pub enum Stream {
    Tcp(TcpStream, SocketAddr),
    Unix(UnixStream),
}

impl Listener {
    /// Accepts the next connection.
    pub async fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Tcp(listener) => {
                let (stream, from) = listener.accept().await?;
                // Fails only if the client has gone already.
                let _ = stream.set_nodelay(true);
                Ok(Stream::Tcp(stream, from))
            }
            Self::Unix(listener) => Ok(Stream::Unix(listener.accept().await?.0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::IntoRawFd;

    use super::*;

    #[tokio::test]
    async fn clients_that_are_gone_are_found() {
        let bound = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = bound.local_addr().unwrap();
        let settings =
            ListenerSettings { fd: bound.into_raw_fd(), address: address.to_string(), http: true, grpc: true };
        let listener = Descriptor::from_settings(&settings).unwrap().listener().unwrap();
        let _client = std::net::TcpStream::connect(address).unwrap();
        let Stream::Tcp(stream, _) = listener.accept().await.unwrap() else { panic!("not a tcp socket") };
        let fd = OwnedFd::from(stream.into_std().unwrap());
        assert_eq!(socket_option(&fd, libc::SO_KEEPALIVE).unwrap(), 1, "accepted sockets inherit it");
    }
}
