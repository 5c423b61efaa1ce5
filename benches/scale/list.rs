//! Listing all VMs with everything, each side in turn.

use crate::host::{Failure, command};
use crate::{Api, ms, percentiles};
use kvmlet::proto::v1::ListVmsRequest;
use std::time::{Duration, Instant};
use virt::connect::Connect;

pub(crate) async fn compare(
    api: &Api,
    uri: &str,
    count: usize,
    rounds: usize,
) -> Result<(), Failure> {
    let (mut ours, mut libvirts, mut virshs) = (Vec::new(), Vec::new(), Vec::new());
    let connection = Connect::open(Some(uri))?;
    for _ in 0..rounds {
        ours.push(by_kvmlet(api, count).await?);
        libvirts.push(tokio::task::block_in_place(|| {
            by_libvirt(&connection, count)
        })?);
    }
    // Takes seconds; the ratio needs no more than two.
    for _ in 0..rounds.min(2) {
        virshs.push(tokio::task::block_in_place(|| by_virsh(uri, count))?);
    }
    let (ours, _) = percentiles(&mut ours);
    println!("  list of everything, median");
    println!("    ListVms                         {:>10.2} ms", ms(ours));
    for (name, mut times) in [
        ("libvirt: list, state, definition", libvirts),
        ("virsh list --all, dominfo of each", virshs),
    ] {
        let (median, _) = percentiles(&mut times);
        println!(
            "    {name:<33} {:>8.2} ms  {:>8.1} times as long",
            ms(median),
            median.as_secs_f64() / ours.as_secs_f64()
        );
    }
    Ok(())
}

async fn by_kvmlet(api: &Api, count: usize) -> Result<Duration, Failure> {
    let begin = Instant::now();
    let mut request = ListVmsRequest {
        page_size: 1000,
        ..Default::default()
    };
    let mut listed = 0;
    loop {
        let page = api.vms().list_vms(request.clone()).await?.into_inner();
        listed += page.vms.len();
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    let took = begin.elapsed();
    all(listed, count)?;
    Ok(took)
}

fn by_libvirt(connection: &Connect, count: usize) -> Result<Duration, Failure> {
    let begin = Instant::now();
    let mut listed = 0;
    for domain in connection.list_all_domains(0)? {
        domain.state()?;
        if domain.xml_desc(0)?.contains("kvmlet") {
            listed += 1;
        }
    }
    let took = begin.elapsed();
    all(listed, count)?;
    Ok(took)
}

fn by_virsh(uri: &str, count: usize) -> Result<Duration, Failure> {
    let virsh = |arguments: &[&str]| -> Result<String, Failure> {
        let output = command("virsh")
            .args(["--quiet", "--connect", uri])
            .args(arguments)
            .output()?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
        }
        Ok(String::from_utf8(output.stdout)?)
    };
    let begin = Instant::now();
    let mut listed = 0;
    for name in virsh(&["list", "--all", "--name"])?.lines() {
        if name.starts_with("kvmlet-") {
            virsh(&["dominfo", name])?;
            listed += 1;
        }
    }
    let took = begin.elapsed();
    all(listed, count)?;
    Ok(took)
}

fn all(listed: usize, count: usize) -> Result<(), Failure> {
    if listed == count {
        Ok(())
    } else {
        Err(format!("{listed} of {count} VMs are listed").into())
    }
}
