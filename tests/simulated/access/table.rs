//! Every call by every kind of caller: what docs/access.md says is what happens.

use crate::access::stand::{ADMIN, OPERATOR, STRANGER, Stand, VIEWER};
use crate::support::pki::Wish;
use kvmlet::model::access::Role;
use kvmlet::proto::v1::DESCRIPTORS;
use prost::Message;
use prost_types::FileDescriptorSet;
use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::Path;
use std::time::Duration;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;
use tonic_types::StatusExt;

/// What comes of a call, as far as it is about who calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// The connection is not let in.
    Closed,
    /// `NOT_AUTHENTICATED`.
    Unknown,
    /// `NOT_ALLOWED`.
    Denied,
    /// The call is looked into, whatever comes of it.
    In,
}

/// Which role a caller has, or what comes of each of his calls.
type Known = Result<Option<Role>, Answer>;

/// What the document says that each call needs.
fn documented() -> BTreeMap<String, Role> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/access.md");
    let text = fs::read_to_string(path).unwrap();
    let rows = text
        .lines()
        .skip_while(|line| *line != "| call | role |")
        .skip(2)
        .take_while(|line| line.starts_with('|'));
    let mut needs = BTreeMap::new();
    for row in rows {
        let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
        let role = Role::ALL
            .into_iter()
            .find(|role| role.as_str() == cells[1])
            .expect(row);
        match cells[0].trim_matches('`') {
            "health and reflection" => {
                for path in [
                    "/grpc.health.v1.Health/Check",
                    "/grpc.health.v1.Health/Watch",
                    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
                    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
                ] {
                    needs.insert(path.to_owned(), role);
                }
            }
            call => {
                needs.insert(format!("/kvmlet.v1.{call}"), role);
            }
        }
    }
    needs
}

/// Every call of the contract that the agent serves.
fn served() -> Vec<String> {
    let set = FileDescriptorSet::decode(DESCRIPTORS).unwrap();
    let ours = set.file.iter().filter(|file| file.package() == "kvmlet.v1");
    ours.flat_map(|file| &file.service)
        .flat_map(|service| {
            let path = |method: &prost_types::MethodDescriptorProto| {
                format!("/kvmlet.v1.{}/{}", service.name(), method.name())
            };
            service.method.iter().map(path).collect::<Vec<_>>()
        })
        .collect()
}

/// Makes a call with an empty request.
async fn ask(channel: &Channel, path: &str) -> Answer {
    let mut client = tonic::client::Grpc::new(channel.clone());
    let path: PathAndQuery = path.parse().unwrap();
    let codec = ProstCodec::<(), ()>::default();
    if let Err(error) = client.ready().await {
        return judge(Err(Status::from_error(error.into())));
    }
    let streams = ["WatchEvents", "/Watch", "ServerReflectionInfo"];
    let asked = async {
        if streams.iter().any(|name| path.path().ends_with(name)) {
            let one = Request::new(tokio_stream::iter([()]));
            client.streaming(one, path, codec).await.map(drop)
        } else {
            client.unary(Request::new(()), path, codec).await.map(drop)
        }
    };
    let answer = tokio::time::timeout(Duration::from_secs(30), asked).await;
    judge(answer.expect("an answer in time"))
}

fn judge(answer: Result<(), Status>) -> Answer {
    let Err(status) = answer else {
        return Answer::In;
    };
    let details = status.get_error_details();
    // What the agent has sent has no cause here; what the connection failed with has.
    if status.source().is_some() {
        return Answer::Closed;
    }
    match (status.code(), details.error_info()) {
        (Code::PermissionDenied, Some(info)) => {
            assert_eq!(info.reason, "NOT_ALLOWED");
            assert!(info.metadata.contains_key("needs"), "{status:?}");
            Answer::Denied
        }
        (Code::Unauthenticated, Some(info)) => {
            assert_eq!(info.reason, "NOT_AUTHENTICATED");
            Answer::Unknown
        }
        _ => Answer::In,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_by_every_kind_of_caller() {
    let needs = documented();
    for path in served() {
        assert!(needs.contains_key(&path), "docs/access.md lacks {path}");
    }
    assert_eq!(needs.len(), served().len() + 4, "and names what is served");

    let stand = Stand::start().await;
    let by = |wish: Wish| stand.channel(Some(&stand.issue(&wish)));
    let other = stand.other_ca.issue(&Wish::dns(ADMIN));
    let expired = Wish {
        expired: Some(Duration::from_secs(1)),
        ..Wish::dns(ADMIN)
    };
    let callers: [(&str, Channel, Known); 9] = [
        ("no certificate", stand.channel(None), Err(Answer::Closed)),
        (
            "wrong authority",
            stand.channel(Some(&other)),
            Err(Answer::Closed),
        ),
        ("expired", by(expired), Err(Answer::Closed)),
        (
            "without role",
            by(Wish::uri("spiffe://test.example/x")),
            Ok(None),
        ),
        ("viewer", by(Wish::uri(VIEWER)), Ok(Some(Role::Viewer))),
        (
            "operator",
            by(Wish::uri(OPERATOR)),
            Ok(Some(Role::Operator)),
        ),
        ("admin", by(Wish::dns(ADMIN)), Ok(Some(Role::Admin))),
        ("local user", stand.as_user(STRANGER), Ok(None)),
        ("root", stand.daemon.api().channel, Ok(Some(Role::Admin))),
    ];
    print!("{:62}", "call");
    for (name, ..) in &callers {
        print!("{name:>17}");
    }
    println!();
    let mut wrong = Vec::new();
    for (path, needed) in &needs {
        print!("{path:62}");
        for (name, channel, role) in &callers {
            let expected = match role {
                Err(answer) => *answer,
                Ok(Some(role)) if role >= needed => Answer::In,
                Ok(_) => Answer::Denied,
            };
            let real = ask(channel, path).await;
            print!("{:>17}", format!("{real:?}"));
            if real != expected {
                wrong.push(format!("{path} by {name}: {real:?}, not {expected:?}"));
            }
        }
        println!();
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_nobody_knows_is_refused_to_all() {
    let stand = Stand::start().await;
    let admin = stand.admin().channel;
    for path in ["/kvmlet.v1.VmService/Nothing", "/a.b.C/D", "/x"] {
        let mut client = tonic::client::Grpc::new(admin.clone());
        client.ready().await.unwrap();
        let codec = ProstCodec::<(), ()>::default();
        let path: PathAndQuery = path.parse().unwrap();
        let answer = client.unary(Request::new(()), path, codec).await;
        let status = answer.map(drop).unwrap_err();
        assert_eq!(status.code(), Code::Unimplemented, "{status:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_user_has_the_role_of_his_number_and_of_his_group() {
    let stand = Stand::with(|mut setup, _| {
        setup.more = format!(
            "[access.viewer]\ngroups = [\"{STRANGER}\"]\n\
             [access.operator]\nusers = [\"{}\"]\n",
            STRANGER + 1
        );
        setup
    })
    .await;
    let get = "/kvmlet.v1.NodeService/GetNode";
    let stop = "/kvmlet.v1.VmService/StopVm";
    let by_group = stand.as_user(STRANGER);
    assert_eq!(ask(&by_group, get).await, Answer::In);
    assert_eq!(ask(&by_group, stop).await, Answer::Denied);
    let by_number = stand.as_user(STRANGER + 1);
    assert_eq!(ask(&by_number, stop).await, Answer::In);
    let nobody = stand.as_user(STRANGER + 2);
    assert_eq!(ask(&nobody, get).await, Answer::Denied);
}
