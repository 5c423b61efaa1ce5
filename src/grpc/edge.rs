//! What every service of the edge needs: the use cases, and the word to stop.

use super::convert;
use crate::model::fault::Fault;
use crate::model::operation::Operation;
use crate::proto::v1 as wire;
use crate::service::Core;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// The use cases, and the word to stop.
#[derive(Clone)]
pub(super) struct Edge {
    /// The use cases.
    pub(super) core: Arc<Core>,
    /// Cancelled when the server stops: calls that only wait answer at once.
    pub(super) stop: CancellationToken,
}

impl Edge {
    /// This node, where VMs with power are.
    pub(super) fn host(&self) -> Uuid {
        self.core.node.id()
    }

    /// How long a page shall be of which this much was asked for; 0: nothing was.
    ///
    /// # Errors
    /// `FIELD_INVALID`.
    pub(super) fn page_size(&self, asked: u32) -> Result<u32, Fault> {
        let most = self.core.door.limits().page_size;
        if asked > most {
            let words = format!("must be at most {most}");
            return Err(convert::invalid("page_size", words));
        }
        Ok(match asked {
            0 => convert::page::DEFAULT.min(most),
            asked => asked,
        })
    }

    /// An operation for the wire.
    pub(super) fn operation(&self, operation: &Operation) -> wire::Operation {
        convert::operation::shown(operation, self.host(), |image| {
            self.core.vms.volumes_of_image(image)
        })
    }
}
