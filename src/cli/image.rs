//! `kvmlet image`.

use crate::cli::connect::Session;
use crate::cli::fault::Fault;
use crate::cli::output;
use crate::cli::parse;
use crate::cli::resolve::{self, PAGE};
use crate::cli::table::{Sheet, Table};
use crate::cli::wait::{self, WaitArgs};
use crate::proto::v1::{
    DeleteImageRequest, GetImageRequest, Image, ImageFormat, ImportImageRequest, ListImagesRequest,
};
use clap::{Args, Subcommand, ValueEnum};
use uuid::Uuid;

/// Commands on images.
#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Bring an image to this host
    #[command(after_help = "\
Examples:
  kvmlet image import /var/lib/kvmlet/import/debian.qcow2 --name debian
  kvmlet image import https://example.org/disk.img --source-format raw --sha256 9f86d0…")]
    Import(ImportArgs),
    /// List images
    #[command(after_help = "Example:\n  kvmlet image list --label os=debian")]
    List {
        /// Only with this label (may be repeated: with all of them)
        #[arg(short, long = "label", value_name = "KEY=VALUE", value_parser = parse::pair)]
        labels: Vec<(String, String)>,
    },
    /// Show one image
    #[command(after_help = "Example:\n  kvmlet image show debian")]
    Show {
        /// The image's id, the beginning of it, or its name
        image: String,
    },
    /// Delete an image that no volume is made from
    #[command(after_help = "Example:\n  kvmlet image delete debian --dry-run")]
    Delete {
        /// The image's id, the beginning of it, or its name
        image: String,
        /// Check everything, change nothing, print the plan
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        wait: WaitArgs,
    },
}

/// What to import.
#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// A file in a directory that the configuration allows, or an allowed URL
    #[arg(value_name = "FILE|URL")]
    source: String,
    /// The format that the source is in; it is never guessed
    #[arg(long, value_enum, default_value_t = SourceFormat::Qcow2)]
    source_format: SourceFormat,
    /// A name for people [default: the id]
    #[arg(long)]
    name: Option<String>,
    /// UUID of the image [default: a new one]
    #[arg(long, value_name = "UUID")]
    id: Option<Uuid>,
    /// Expected SHA-256 of the source, 64 hexadecimal digits
    #[arg(long, value_name = "DIGITS")]
    sha256: Option<String>,
    /// The pool to hold it [default: the default pool]
    #[arg(long)]
    pool: Option<String>,
    /// Free text
    #[arg(long)]
    description: Option<String>,
    /// A value to select by (may be repeated)
    #[arg(short, long = "label", value_name = "KEY=VALUE", value_parser = parse::pair)]
    labels: Vec<(String, String)>,
    /// Operating system inside
    #[arg(long)]
    os: Option<String>,
    /// Platform
    #[arg(long)]
    platform: Option<String>,
    #[command(flatten)]
    wait: WaitArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum SourceFormat {
    /// Plain bytes
    Raw,
    /// QEMU's qcow2
    Qcow2,
}

/// Carries out a command.
pub(crate) async fn run(session: &Session, command: ImageCommand) -> Result<(), Fault> {
    match command {
        ImageCommand::Import(args) => import(session, args).await,
        ImageCommand::List { labels } => list(session, &labels).await,
        ImageCommand::Show { image } => show(session, &image).await,
        ImageCommand::Delete {
            image,
            dry_run,
            wait,
        } => {
            let image_id = resolve::image(session, &image).await?;
            wait::carry_out(session, &wait, |request_id| {
                let mut client = session.images();
                let request = DeleteImageRequest {
                    request_id,
                    image_id: image_id.clone(),
                    validate_only: dry_run,
                };
                async move { client.delete_image(request).await }
            })
            .await
        }
    }
}

async fn import(session: &Session, args: ImportArgs) -> Result<(), Fault> {
    let format = match args.source_format {
        SourceFormat::Raw => ImageFormat::Raw,
        SourceFormat::Qcow2 => ImageFormat::Qcow2,
    };
    let wanted = ImportImageRequest {
        request_id: String::new(),
        image_id: args.id.map(|id| id.to_string()).unwrap_or_default(),
        name: args.name.unwrap_or_default(),
        description: args.description.unwrap_or_default(),
        labels: parse::map(&args.labels),
        source: absolute(&args.source)?,
        format: format.into(),
        sha256: args.sha256.unwrap_or_default(),
        pool: args.pool.unwrap_or_default(),
        os: args.os.unwrap_or_default(),
        platform: args.platform.unwrap_or_default(),
    };
    wait::carry_out(session, &args.wait, |request_id| {
        let mut client = session.images();
        let request = ImportImageRequest {
            request_id,
            ..wanted.clone()
        };
        async move { client.import_image(request).await }
    })
    .await
}

/// The daemon has another current directory: a relative path is made absolute.
fn absolute(source: &str) -> Result<String, Fault> {
    if source.contains("://") {
        return Ok(source.to_owned());
    }
    let path = std::path::absolute(source)
        .map_err(|error| Fault::usage(format!("{source:?}: {error}")))?;
    path.into_os_string()
        .into_string()
        .map_err(|_| Fault::usage("the current directory's name is not UTF-8"))
}

async fn list(session: &Session, labels: &[(String, String)]) -> Result<(), Fault> {
    let images = resolve::pages(|page_token| {
        let mut client = session.images();
        let request = ListImagesRequest {
            page_size: PAGE,
            page_token,
            labels: parse::map(labels),
        };
        async move {
            let page = client.list_images(request).await?.into_inner();
            Ok((page.images, page.next_page_token))
        }
    })
    .await?;
    session.out.many(&images, || {
        let mut table = Table::new(&[
            "ID", "NAME", "STATE", "SIZE", "USED", "POOL", "VOLUMES", "LAST USE", "CREATED",
        ]);
        for image in &images {
            table.row([
                image.id.clone(),
                image.name.clone(),
                state(image).to_owned(),
                output::size(image.virtual_size_bytes),
                output::size(image.actual_size_bytes),
                image.pool.clone(),
                image.volume_count.to_string(),
                session.out.relative(image.last_use_time),
                session.out.relative(image.create_time),
            ]);
        }
        table
    })
}

async fn show(session: &Session, image: &str) -> Result<(), Fault> {
    let image_id = resolve::image(session, image).await?;
    let request = GetImageRequest { image_id };
    let image = session.images().get_image(request).await?.into_inner();
    session.out.one(&image, || {
        let mut sheet = Sheet::default();
        sheet.add("id", &image.id);
        sheet.add("name", &image.name);
        sheet.add("description", &image.description);
        sheet.add("state", state(&image));
        sheet.add("pool", &image.pool);
        sheet.add("size", output::size(image.virtual_size_bytes));
        sheet.add("used", output::size(image.actual_size_bytes));
        sheet.add("volumes", image.volume_count);
        sheet.add("last use", session.out.local(image.last_use_time));
        sheet.add("source", &image.source);
        sheet.add(
            "source format",
            output::word(image.source_format().as_str_name(), "IMAGE_FORMAT_"),
        );
        sheet.add("source SHA-256", &image.source_sha256);
        sheet.add("os", &image.os);
        sheet.add("platform", &image.platform);
        sheet.add("labels", output::pairs(&image.labels, "\n"));
        sheet.add("created", session.out.local(image.create_time));
        sheet.to_string()
    })
}

fn state(image: &Image) -> &'static str {
    output::name(image.state().as_str_name(), "IMAGE_STATE_")
}
