//! Who calls.
//!
//! On the Unix socket the kernel says who the peer is; over TCP there is only an
//! address. This names callers for the record; it lets nobody in or out.

use tonic::Request;
use tonic::transport::server::{TcpConnectInfo, UdsConnectInfo};

/// The name of a request's caller: `uid:<n>`, else the peer's address.
pub(super) fn name<T>(request: &Request<T>) -> String {
    let extensions = request.extensions();
    let uid = extensions
        .get::<UdsConnectInfo>()
        .and_then(|peer| peer.peer_cred)
        .map(|credentials| format!("uid:{}", credentials.uid()));
    let address = || {
        let peer = extensions.get::<TcpConnectInfo>()?;
        peer.remote_addr().map(|address| address.to_string())
    };
    uid.or_else(address).unwrap_or_else(|| "unknown".to_owned())
}
