//! Secrets: what libvirt gives to QEMU and to nobody else.

use super::connection::Host;
use super::error::LibvirtError;
use super::xml::write;
use uuid::Uuid;

impl Host {
    /// Makes libvirt know a Ceph user's key under `id`, over whatever it knew.
    ///
    /// It is ephemeral (libvirt writes it to no disk) and private (libvirt tells it to
    /// no client). `usage` must be the same for the same id.
    ///
    /// # Errors
    /// `Unsupported` with drivers that keep no secrets.
    pub fn set_ceph_secret(&self, id: Uuid, usage: &str, value: &[u8]) -> Result<(), LibvirtError> {
        let text = write::ceph_secret(id, usage)
            .map_err(|e| LibvirtError::refused("define secret", super::ErrorKind::Invalid, e))?;
        self.call("define secret", |connection| {
            let secret = connection.define_secret_xml(&text, 0)?;
            secret.set_value(value, 0)
        })
    }
}
