//! The smallest guests there are: a boot sector that writes a line to the
//! serial port, and then idles or powers the machine off.

use kvmlet::libvirt::NicSpec;
use kvmlet::model::ids::{NicId, VmId};
use kvmlet::model::nic::{Attachment, MacAddress, NicModel};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// What the guest writes when it boots.
pub(crate) const LINE: &str = "kvmlet test guest\r\n";

/// What a guest does after its line.
#[derive(Debug, Clone, Copy)]
pub(crate) enum BootSector {
    Idle,
    PowerOff,
    /// Writes its line, and six seconds later again, and powers off.
    PowerOffLater,
    /// Writes its line, and six seconds later again, and restarts: again and again.
    RestartLater,
    /// Writes its line, and six seconds later again, and tells of a panic.
    PanicLater,
    /// Writes its line again and again.
    Chatter,
    /// Writes its line, and then to its disk, further and further, up to 32 MiB.
    Writer,
    /// Counts in sector 64 of its disk, and writes each number to the serial port once it
    /// is on the disk, with a mark that it gave the disk at its first boot: 8 digits of
    /// hexadecimal each, about 4 times in a second. SeaBIOS offers QEMU no cache to be
    /// flushed, so that a write which has ended is on the disk.
    Counter,
    /// Powers off when its power button was pressed so many times.
    Button(u8),
}

impl BootSector {
    fn bytes(self) -> [u8; 512] {
        // Asks a q35 board to power off: SLP_EN, sleep type 0, to PM1a_CNT.
        const POWER_OFF: [u8; 7] = [0xba, 0x04, 0x06, 0xb8, 0x00, 0x20, 0xef];
        // Asks a q35 board for a full reset, by its reset control register.
        const RESTART: [u8; 6] = [0xba, 0xf9, 0x0c, 0xb0, 0x06, 0xee];
        // Tells the panic device of a panic.
        const PANIC: [u8; 6] = [0xba, 0x05, 0x05, 0xb0, 0x01, 0xee];
        let print = [
            0x31, 0xc0, // xor ax, ax
            0x8e, 0xd8, // mov ds, ax
            0xbe, 0x40, 0x7c, // mov si, the line at 0x40
            0xac, // next: lodsb
            0x84, 0xc0, // test al, al
            0x74, 0x06, // jz end
            0xba, 0xf8, 0x03, // mov dx, the first serial port
            0xee, // out dx, al
            0xeb, 0xf5, // jmp next
        ];
        let print_again = [0xeb, 0xf0]; // jmp mov si
        let print_twice = [
            0x31, 0xc0, // xor ax, ax
            0x8e, 0xd8, // mov ds, ax
            0xfb, // sti: the timer ends each hlt
            0xbb, 0x02, 0x00, // mov bx, 2
            0xbe, 0x40, 0x7c, // again: mov si, the line at 0x40
            0xac, // next: lodsb
            0x84, 0xc0, // test al, al
            0x74, 0x06, // jz written
            0xba, 0xf8, 0x03, // mov dx, the first serial port
            0xee, // out dx, al
            0xeb, 0xf5, // jmp next
            0x4b, // written: dec bx
            0x74, 0x08, // jz end
            0xb9, 0x6e, 0x00, // mov cx, 110 ticks of 55 ms
            0xf4, // tick: hlt
            0xe2, 0xfd, // loop tick
            0xeb, 0xe7, // jmp again
        ];
        let presses = match self {
            Self::Button(presses) => presses,
            Self::Idle
            | Self::PowerOff
            | Self::PowerOffLater
            | Self::RestartLater
            | Self::PanicLater
            | Self::Chatter
            | Self::Writer
            | Self::Counter => 0,
        };
        let button = [
            0xfb, // sti: the timer ends each hlt
            0xba, 0x02, 0x06, // mov dx, what is told of (PM1_EN)
            0xb8, 0x00, 0x01, // mov ax, the power button
            0xef, // out dx, ax
            0xba, 0x00, 0x06, // mov dx, what has happened (PM1_STS)
            0xef, // out dx, ax: seen
            0xb9, presses, 0x00, // mov cx, presses
            0xf4, // wait: hlt
            0xed, // in ax, dx
            0xf6, 0xc4, 0x01, // test ah, 1
            0x74, 0xf9, // jz wait
            0xb8, 0x00, 0x01, // mov ax, the power button
            0xef, // out dx, ax: seen
            0x49, // dec cx
            0x75, 0xf2, // jnz wait
        ];
        let button = [&button[..], &POWER_OFF].concat();
        let write_on = [
            0xb4, 0x43, // write: mov ah, 0x43: the BIOS's extended write
            0x30, 0xc0, // xor al, al
            0xb2, 0x80, // mov dl, the first disk
            0xbe, 0x60, 0x7c, // mov si, the request at 0x60
            0xcd, 0x13, // int 0x13
            0x81, 0x06, 0x68, 0x7c, 0x80, 0x00, // add word [its sector], 128
            0xeb, 0xed, // jmp write
        ];
        let far = [0xeb, 0x7e]; // jmp 0x80
        let count = [
            0x31, 0xc0, // xor ax, ax
            0x8e, 0xd8, // mov ds, ax
            0xfb, // sti: the timer ends each hlt
            0xfc, // cld
            0xbe, 0x40, 0x7c, // mov si, the line at 0x40
            0xac, // next: lodsb
            0x84, 0xc0, // test al, al
            0x74, 0x06, // jz written
            0xba, 0xf8, 0x03, // mov dx, the first serial port
            0xee, // out dx, al
            0xeb, 0xf5, // jmp next
            0xb4, 0x42, // written: mov ah, 0x42: the BIOS's extended read
            0xb2, 0x80, // mov dl, the first disk
            0xbe, 0x60, 0x7c, // mov si, the request at 0x60
            0xcd, 0x13, // int 0x13
            0x66, 0x83, 0x3e, 0x04, 0x80, 0x00, // cmp dword [0x8004], 0
            0x75, 0x06, // jne count
            0x0f, 0x31, // rdtsc
            0x66, 0xa3, 0x04, 0x80, // mov [0x8004], eax: this disk's own mark
            0x66, 0xff, 0x06, 0x00, 0x80, // count: inc dword [0x8000]
            0xb8, 0x00, 0x43, // mov ax, 0x4300: the extended write
            0xb2, 0x80, // mov dl, the first disk
            0xbe, 0x60, 0x7c, // mov si, the request
            0xcd, 0x13, // int 0x13
            0x72, 0x2d, // jc stop
            0xbb, 0x02, 0x00, // mov bx, 2
            0xbe, 0x00, 0x80, // mov si, 0x8000
            0xfc, // cld
            0x66, 0xad, // word: lodsd
            0xb9, 0x08, 0x00, // mov cx, 8
            0x66, 0xc1, 0xc0, 0x04, // digit: rol eax, 4
            0x50, // push ax
            0x24, 0x0f, // and al, 15
            0x3c, 0x0a, // cmp al, 10
            0x1c, 0x69, // sbb al, 0x69
            0x2f, // das: a digit of hexadecimal
            0xba, 0xf8, 0x03, // mov dx, the first serial port
            0xee, // out dx, al
            0x58, // pop ax
            0xe2, 0xed, // loop digit
            0x4b, // dec bx
            0x75, 0xe5, // jnz word
            0xb0, 0x0a, // mov al, the end of a line
            0xee, // out dx, al
            0xb9, 0x04, 0x00, // mov cx, 4 ticks of 55 ms
            0xf4, // tick: hlt
            0xe2, 0xfd, // loop tick
            0xeb, 0xc2, // jmp count
            0xf4, // stop: hlt
            0xeb, 0xfd, // jmp stop
        ];
        let (begin, end) = match self {
            Self::Idle => (&print[..], &[][..]),
            Self::PowerOff => (&print[..], &POWER_OFF[..]),
            Self::PowerOffLater => (&print_twice[..], &POWER_OFF[..]),
            Self::RestartLater => (&print_twice[..], &RESTART[..]),
            Self::PanicLater => (&print_twice[..], &PANIC[..]),
            Self::Chatter => (&print[..], &print_again[..]),
            Self::Writer => (&print[..], &write_on[..]),
            Self::Counter => (&far[..], &[][..]),
            Self::Button(_) => (&print[..], &button[..]),
        };
        // again: hlt; jmp again
        let code: Vec<u8> = [begin, end, &[0xf4, 0xeb, 0xfd]].concat();
        let mut sector = [0; 512];
        sector[..code.len()].copy_from_slice(&code);
        sector[0x40..0x40 + LINE.len()].copy_from_slice(LINE.as_bytes());
        // The request: its size, 64 sectors, of what is at 0:7c00, to sector 128.
        let mut request = [0x10, 0, 64, 0, 0x00, 0x7c, 0, 0, 128];
        if let Self::Counter = self {
            // One sector, at 0:8000, sector 64.
            request = [0x10, 0, 1, 0, 0x00, 0x80, 0, 0, 64];
            sector[0x80..0x80 + count.len()].copy_from_slice(&count);
        }
        sector[0x60..0x60 + request.len()].copy_from_slice(&request);
        sector[510..].copy_from_slice(&[0x55, 0xaa]);
        sector
    }

    /// Makes a qcow2 disk of 1 MiB that boots it.
    pub(crate) fn write_disk(self, path: &Path) {
        let raw = path.with_extension("raw");
        let mut bytes = self.bytes().to_vec();
        bytes.resize(1 << 20, 0);
        std::fs::write(&raw, bytes).unwrap();
        qemu_img(&["convert", "-f", "raw", "-O", "qcow2"], &[&raw, path]);
        std::fs::remove_file(raw).unwrap();
    }
}

/// Makes a qcow2 disk that shows `base` until it is written to.
pub(crate) fn write_overlay(path: &Path, base: &Path) {
    qemu_img(
        &["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"],
        &[base, path],
    );
}

fn qemu_img(arguments: &[&str], paths: &[&Path]) {
    #[allow(clippy::disallowed_methods)] // a test prepares its own disks
    let done = Command::new("qemu-img")
        .args(arguments)
        .args(paths)
        .status()
        .unwrap();
    assert!(done.success());
}

/// An interface that needs nothing of the host.
pub(crate) fn user_nic(vm: VmId) -> NicSpec {
    NicSpec {
        mac: MacAddress::derived(NicId::random(), vm),
        model: NicModel::Virtio,
        mtu: None,
        attachment: Attachment::User,
    }
}

/// Waits for a condition that nothing announces.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
