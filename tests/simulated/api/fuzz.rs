//! Every call with messages of any content: each is answered with success or with a
//! documented refusal, and the daemon goes on.
//!
//! The messages are made from the descriptors, so a call or field that is added to
//! the protos is tried from then on. Some are then damaged, or never were messages.

use crate::support::api::{Api, Start, id};
use crate::support::daemon::Daemon;
use crate::support::refusal::Refusal;
use crate::support::thorough;
use kvmlet::proto::v1::*;
use prost::Message;
use prost::bytes::{Buf, BufMut};
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor,
    MethodDescriptor, Value,
};
use rand::rngs::StdRng;
use rand::seq::{IndexedMutRandom, IndexedRandom};
use rand::{Rng, RngCore, SeedableRng};
use std::time::Duration;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Code, Request, Status};

/// Messages for each call; four times as many in a thorough run.
const MESSAGES: u32 = 50;

/// How long a stream that was opened is listened to.
const LISTEN: Duration = Duration::from_millis(20);

/// Bytes as they are.
#[derive(Debug, Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut item = vec![0; from.remaining()];
        from.copy_to_slice(&mut item);
        Ok(Some(item))
    }
}

/// Makes messages, in which ids are often those of things that are there.
struct Maker {
    random: StdRng,
    ids: Vec<String>,
}

impl Maker {
    fn text(&mut self) -> String {
        const TEXTS: [&str; 14] = [
            "",
            "a",
            "default",
            "lan",
            "small",
            "00000000-0000-0000-0000-000000000000",
            "52:54:00:00:00:01",
            "ceph::rootPoolName::vms",
            "/etc/passwd",
            "../../etc/passwd",
            "$(reboot); `reboot` | reboot",
            "%s%n{}{0}",
            "<'\"&>🦀\u{202e}]]>",
            "a\0\nb\u{fffe}",
        ];
        match self.random.random_range(0..20) {
            0 => "x".repeat(self.random.random_range(0..5000)),
            1..=8 => self.ids.choose(&mut self.random).unwrap().clone(),
            9 => id(),
            _ => (*TEXTS.choose(&mut self.random).unwrap()).to_owned(),
        }
    }

    fn number(&mut self) -> u64 {
        const NUMBERS: [u64; 10] = [0, 1, 2, 7, 68, 4095, 16 << 20, 1 << 30, 1 << 63, u64::MAX];
        match self.random.random_range(0..5) {
            0 => self.random.random(),
            _ => *NUMBERS.choose(&mut self.random).unwrap(),
        }
    }

    #[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)] // any will do
    fn value(&mut self, kind: &Kind, depth: u32) -> Value {
        match kind {
            Kind::Double => Value::F64(f64::from_bits(self.number())),
            Kind::Float => Value::F32(f32::from_bits(self.number() as u32)),
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(self.number() as i32),
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(self.number() as i64),
            Kind::Uint32 | Kind::Fixed32 => Value::U32(self.number() as u32),
            Kind::Uint64 | Kind::Fixed64 => Value::U64(self.number()),
            Kind::Bool => Value::Bool(self.random.random()),
            Kind::String => Value::String(self.text()),
            Kind::Bytes => Value::Bytes(self.text().into_bytes().into()),
            Kind::Enum(_) if self.random.random_bool(0.1) => {
                Value::EnumNumber(self.number() as i32)
            }
            Kind::Enum(_) => Value::EnumNumber(self.random.random_range(0..4)),
            Kind::Message(message) => Value::Message(self.message(message, depth + 1)),
        }
    }

    fn field(&mut self, field: &FieldDescriptor, depth: u32) -> Value {
        let many = self.random.random_range(0..=2);
        if field.is_map() {
            let kind = field.kind();
            let value = kind.as_message().unwrap().map_entry_value_field().kind();
            let entries = (0..many).map(|_| {
                let key = MapKey::String(self.text());
                (key, self.value(&value, depth))
            });
            Value::Map(entries.collect())
        } else if field.is_list() {
            let kind = field.kind();
            Value::List((0..many).map(|_| self.value(&kind, depth)).collect())
        } else {
            self.value(&field.kind(), depth)
        }
    }

    fn message(&mut self, of: &MessageDescriptor, depth: u32) -> DynamicMessage {
        // Sparse ones get through, full ones find what is wrong.
        let usual = *[0.2, 0.8].choose(&mut self.random).unwrap();
        let mut message = DynamicMessage::new(of.clone());
        for field in of.fields() {
            if depth <= 4 && self.random.random_bool(usual) {
                let value = self.field(&field, depth);
                message.set_field(&field, value);
            }
        }
        message
    }

    fn request(&mut self, of: &MessageDescriptor) -> Vec<u8> {
        let mut message = self.message(of, 0);
        for (name, right) in [("vm_id", 0), ("image_id", 1), ("operation_id", 2)] {
            if of.get_field_by_name(name).is_some() && self.random.random_bool(0.7) {
                message.set_field_by_name(name, Value::String(self.ids[right].clone()));
            }
        }
        if of.get_field_by_name("request_id").is_some() {
            message.set_field_by_name("request_id", Value::String(String::new()));
        }
        let mut bytes = message.encode_to_vec();
        match self.random.random_range(0..8) {
            0 => {
                bytes = vec![0; self.random.random_range(0..300)];
                self.random.fill_bytes(&mut bytes);
            }
            1 => bytes.truncate(self.random.random_range(0..=bytes.len())),
            2 => {
                for _ in 0..self.random.random_range(1..4) {
                    let value = self.random.random();
                    if let Some(byte) = bytes.choose_mut(&mut self.random) {
                        *byte = value;
                    }
                }
            }
            _ => {}
        }
        bytes
    }
}

/// Sends bytes, and returns how the call ended: streams are listened to for a while.
async fn send(api: &Api, call: &MethodDescriptor, bytes: Vec<u8>) -> Result<(), Status> {
    let path = format!("/{}/{}", call.parent_service().full_name(), call.name());
    let mut client = tonic::client::Grpc::new(api.channel.clone());
    client.ready().await.expect("the daemon is there");
    let path = path.parse().unwrap();
    let answer = client.server_streaming(Request::new(bytes), path, Raw);
    let mut stream = answer.await?.into_inner();
    if call.is_server_streaming() {
        return match tokio::time::timeout(LISTEN, stream.message()).await {
            Ok(message) => message.map(drop),
            Err(_) => Ok(()),
        };
    }
    stream.message().await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_sent_is_answered_in_the_words_of_the_contract() {
    let seed: u64 = std::env::var("KVMLET_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(rand::random);
    println!("seed: {seed} (KVMLET_SEED)");
    let daemon = Daemon::simulated().await;
    let api = daemon.api();
    let image = daemon.image().await;
    let vm = api.create(&image, Start::Yes).await;
    let operation = api.all_operations().await.remove(0).id;
    let mut maker = Maker {
        random: StdRng::seed_from_u64(seed),
        ids: vec![vm, image, operation],
    };
    let pool = DescriptorPool::decode(DESCRIPTORS).unwrap();
    let services: Vec<_> = pool
        .services()
        .filter(|service| service.package_name() == "kvmlet.v1")
        .collect();
    let calls: Vec<_> = services.iter().flat_map(|s| s.methods()).collect();
    assert!(calls.len() > 30, "{}", calls.len());
    let (mut taken, mut refused) = (0, 0);
    // Each call in its turn, so that what one changes the next ones meet.
    let messages = if thorough() { 4 * MESSAGES } else { MESSAGES };
    for _ in 0..messages {
        for call in &calls {
            let bytes = maker.request(&call.input());
            let Err(status) = send(&api, call, bytes.clone()).await else {
                taken += 1;
                continue;
            };
            refused += 1;
            let shown = || format!("{}: {status:?} to {bytes:?}", call.name());
            // Panics without our ErrorInfo.
            let refusal = Refusal::from(&status);
            let ours = [Code::Internal, Code::Unknown, Code::Unimplemented];
            assert!(!ours.contains(&refusal.code), "{}", shown());
            if refusal.code == Code::InvalidArgument && refusal.fields.is_empty() {
                assert_eq!(
                    refusal.message,
                    "the request can't be decoded",
                    "{}",
                    shown()
                );
            }
        }
    }
    println!("{taken} taken, {refused} refused");
    assert!(taken > 200 && refused > 200, "{taken} {refused}");
    for operation in api.all_operations().await {
        let internal = operation
            .error
            .as_ref()
            .is_some_and(|error| Code::from_i32(error.code) == Code::Internal);
        assert!(!internal, "{operation:?}");
    }
    assert!(!daemon.log().contains("panicked"));
    assert!(daemon.is_alive());
    assert!(api.serving("").await.unwrap());
    let list = ListImagesRequest::default();
    api.images().list_images(list).await.expect("it serves");
}
