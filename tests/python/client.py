"""A control plane in another language: one VM's life over gRPC.

    python tests/python/client.py TARGET IMAGE

TARGET is where the daemon listens: unix:/path or 127.0.0.1:port. IMAGE is the
absolute path of a qcow2 image in a directory that the daemon may import from.
The daemon is meant to be one that simulates its host (kvmlet serve --simulate):
the guest is never asked anything, so that any image will do.

Knows of kvmlet only what proto/ says: the stubs are generated from it at each
run, by grpcio-tools, into a temporary directory. Prints a line for each step.
Ends with 0 if every step went as the contract says, with 1 and the reason if
one did not, with 2 if it was called wrongly.
"""

import argparse
import contextlib
import pathlib
import sys
import tempfile
import uuid

import grpc
from google.protobuf import descriptor_pb2
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_status import rpc_status
from grpc_tools import protoc

PROTO = pathlib.Path(__file__).resolve().parents[2] / "proto"

SERVICES = [
    "kvmlet.v1.ConsoleService",
    "kvmlet.v1.ImageService",
    "kvmlet.v1.NodeService",
    "kvmlet.v1.OperationService",
    "kvmlet.v1.VmService",
    "kvmlet.v1.VolumeService",
]

# How long a single call may take, in seconds.
DEADLINE = 30
# How long an operation may take, in seconds.
PATIENCE = 120

MIB = 1024 * 1024


class Failure(Exception):
    """Something is not as the contract says."""


def check(condition, what):
    """Raises Failure with `what` unless the condition holds."""
    if not condition:
        raise Failure(what)


def check_equal(found, wanted, what):
    """Raises Failure unless both values are equal."""
    check(found == wanted, f"{what} is {found!r}, not {wanted!r}")


def say(step, detail=""):
    """Prints the line of a step that went well."""
    print(f"ok  {step}" + (f": {detail}" if detail else ""), flush=True)


def generate(directory):
    """Generates the stubs of kvmlet.v1 from proto/ and makes them importable.

    google/rpc/status.proto is only read to resolve the import: its module comes
    with googleapis-common-protos, and two of them can't be registered at once.
    """
    sources = sorted(str(path.relative_to(PROTO)) for path in PROTO.glob("kvmlet/v1/*.proto"))
    check(sources, f"no protos in {PROTO}")
    well_known = pathlib.Path(protoc.__file__).parent / "_proto"
    arguments = ["protoc", f"-I{PROTO}", f"-I{well_known}",
                 f"--python_out={directory}", f"--grpc_python_out={directory}", *sources]
    check_equal(protoc.main(arguments), 0, "protoc's exit code")
    sys.path.insert(0, directory)
    return sources


class Client:
    """The stubs of one daemon, and what every step needs of them."""

    def __init__(self, channel):
        from kvmlet.v1 import (console_pb2_grpc, image_service_pb2_grpc, node_pb2_grpc,
                               operation_pb2, operation_pb2_grpc, vm_service_pb2_grpc,
                               volume_pb2_grpc)
        self.pb = operation_pb2
        self.channel = channel
        self.vms = vm_service_pb2_grpc.VmServiceStub(channel)
        self.images = image_service_pb2_grpc.ImageServiceStub(channel)
        self.volumes = volume_pb2_grpc.VolumeServiceStub(channel)
        self.consoles = console_pb2_grpc.ConsoleServiceStub(channel)
        self.operations = operation_pb2_grpc.OperationServiceStub(channel)
        self.nodes = node_pb2_grpc.NodeServiceStub(channel)

    def finish(self, operation, kind):
        """Waits for the operation's end and returns it; it must have SUCCEEDED."""
        check(operation.id, f"the {kind} operation has no id")
        check_equal(self.pb.OperationType.Name(operation.type), f"OPERATION_TYPE_{kind}",
                    "the operation's type")
        request = self.pb.WaitOperationRequest(operation_id=operation.id)
        request.timeout.FromSeconds(PATIENCE)
        ended = self.operations.WaitOperation(request, timeout=PATIENCE + DEADLINE)
        check_equal(ended.id, operation.id, "the id of the operation that was waited for")
        state = self.pb.OperationState.Name(ended.state)
        check_equal(state, "OPERATION_STATE_SUCCEEDED",
                    f"the state of {kind} ({ended.error.message or 'no error'})")
        check_equal(ended.progress_percent, 100, f"the progress of {kind}")
        check(ended.HasField("end_time"), f"{kind} has no end_time")
        return ended


def refused(code, reason, call, request):
    """Makes a call that must be refused; returns the ErrorInfo that says why."""
    try:
        call(request, timeout=DEADLINE)
    except grpc.RpcError as error:
        check_equal(error.code(), code, f"the code of a refusal ({error.details()})")
        status = rpc_status.from_call(error)
        check(status is not None, "the refusal has no google.rpc.Status")
        for detail in status.details:
            info = error_details_pb2.ErrorInfo()
            if detail.Unpack(info):
                check_equal(info.domain, "kvmlet", "the ErrorInfo's domain")
                check_equal(info.reason, reason, "the ErrorInfo's reason")
                return info
        raise Failure(f"{reason}: the refusal has no google.rpc.ErrorInfo")
    raise Failure(f"a call that must be refused with {reason} was not")


def health(client):
    """Checks that the server and each service are SERVING."""
    stub = health_pb2_grpc.HealthStub(client.channel)
    for service in ["", *SERVICES]:
        request = health_pb2.HealthCheckRequest(service=service)
        answer = stub.Check(request, timeout=DEADLINE)
        check_equal(answer.status, health_pb2.HealthCheckResponse.SERVING,
                    f"the health of {service or 'the server'}")
    say("health", f"the server and {len(SERVICES)} services are SERVING")


def reflection(client, version):
    """Lists the services by reflection and reads one's descriptor.

    grpcio-reflection has the messages of v1alpha only; those of v1 are the same
    on the wire, under another service name.
    """
    call = client.channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString)
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="kvmlet.v1.VmService"),
    ]
    listed, described = list(call(iter(requests), timeout=DEADLINE))
    names = {service.name for service in listed.list_services_response.service}
    missing = set(SERVICES) - names
    check(not missing, f"reflection {version} does not list {sorted(missing)}")
    files = [descriptor_pb2.FileDescriptorProto.FromString(raw)
             for raw in described.file_descriptor_response.file_descriptor_proto]
    methods = {method.name for file in files for service in file.service
               if service.name == "VmService" for method in service.method}
    check("ReplaceRootVolume" in methods, f"reflection {version} does not describe VmService")
    say(f"reflection {version}", f"{len(names)} services, {len(methods)} methods of VmService")


def node(client):
    """Reads the host; returns the name of its default pool."""
    from kvmlet.v1 import node_pb2, volume_pb2
    host = client.nodes.GetNode(node_pb2.GetNodeRequest(), timeout=DEADLINE)
    check(uuid.UUID(host.id), "the host's id")
    pools = client.volumes.ListPools(volume_pb2.ListPoolsRequest(), timeout=DEADLINE).pools
    default = [pool.name for pool in pools if pool.default]
    check_equal(len(default), 1, "the number of default pools")
    say("node", f"{host.hostname}, accelerator {host.accelerator}, default pool {default[0]}")


def import_image(client, path):
    """Imports the image under an id of our own; returns the id."""
    from kvmlet.v1 import image_pb2, image_service_pb2
    image_id = str(uuid.uuid4())
    request = image_service_pb2.ImportImageRequest(
        request_id=str(uuid.uuid4()), image_id=image_id, name="client's image",
        source=path, format=image_pb2.IMAGE_FORMAT_QCOW2)
    first = client.images.ImportImage(request, timeout=DEADLINE)
    again = client.images.ImportImage(request, timeout=DEADLINE)
    check_equal(again.id, first.id, "the operation of the repeated ImportImage")
    ended = client.finish(first, "IMPORT_IMAGE")
    check_equal(ended.WhichOneof("result"), "image", "the result of ImportImage")
    check_equal(ended.image.id, image_id, "the image's id")
    image = client.images.GetImage(image_service_pb2.GetImageRequest(image_id=image_id),
                                   timeout=DEADLINE)
    check_equal(image.state, image_pb2.IMAGE_STATE_READY, "the image's state")
    check(image.virtual_size_bytes > 0, "the image has no size")
    say("ImportImage", f"{image.virtual_size_bytes // MIB} MiB, the repeat is the same operation")
    return image_id


class Life:
    """One VM, from CreateVm to ExpungeVm. Each method is a step, in order."""

    def __init__(self, client, image_id):
        from kvmlet.v1 import vm_pb2, vm_service_pb2
        self.client = client
        self.image_id = image_id
        self.vm_pb = vm_pb2
        self.pb = vm_service_pb2
        # The 32-digit form, as some control planes write it.
        self.short_id = uuid.uuid4().hex
        self.id = str(uuid.UUID(self.short_id))

    def read(self):
        """Reads the VM."""
        request = self.pb.GetVmRequest(vm_id=self.id)
        return self.client.vms.GetVm(request, timeout=DEADLINE)

    def expect_state(self, name):
        """Reads the VM, which must be in that state."""
        vm = self.read()
        check_equal(self.vm_pb.VmState.Name(vm.state), f"VM_STATE_{name}", "the VM's state")
        return vm

    def do(self, call, request, kind, state):
        """Makes a call, waits for its end, and checks the state after it."""
        ended = self.client.finish(call(request, timeout=DEADLINE), kind)
        check_equal(ended.vm_id, self.id, f"the vm_id of {kind}")
        check_equal(self.vm_pb.VmState.Name(ended.vm.state), f"VM_STATE_{state}",
                    f"the state that {kind} ended in")
        self.expect_state(state)
        return ended

    def force(self):
        """The stop policy that asks no guest."""
        return self.vm_pb.StopPolicy(mode=self.vm_pb.STOP_MODE_FORCE)

    def create(self):
        """Creates the VM and starts it; a repeat is the same operation."""
        request = self.pb.CreateVmRequest(
            request_id=str(uuid.uuid4()), vm_id=self.short_id, name="Pythons «VM» & <söhne>",
            description="made by tests/python/client.py",
            labels={"test": "client"}, annotations={"zstack/zoneUuid": "f00"},
            package="small", image_id=self.image_id, os="Linux", platform="Linux",
            hardware=self.vm_pb.Hardware(vcpus=1, memory_bytes=64 * MIB),
            nics=[self.pb.NewNic(user=self.vm_pb.UserAttachment(),
                                 ip_addresses=["192.0.2.7"],
                                 metadata={"zstack/gateway": "192.0.2.1"})],
            user_tags=["client"], start=True)
        first = self.client.vms.CreateVm(request, timeout=DEADLINE)
        again = self.client.vms.CreateVm(request, timeout=DEADLINE)
        check_equal(again.id, first.id, "the operation of the repeated CreateVm")
        ended = self.client.finish(first, "CREATE_VM")
        check_equal(ended.vm_id, self.id, "the hyphenated form of the VM's id")
        check(len(ended.steps) > 0, "CreateVm has no steps")

        request.name = "another name"
        info = refused(grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED",
                       self.client.vms.CreateVm, request)
        check_equal(info.metadata["field"], "name", "the field that REQUEST_ID_REUSED names")
        say("CreateVm", f"{len(ended.steps)} steps; the repeat is the same operation; "
                        "its request_id with another name is refused")

    def get(self):
        """Reads the VM: all that was given is returned as given."""
        vm = self.expect_state("RUNNING")
        check_equal(vm.id, self.id, "the VM's id")
        check_equal(vm.name, "Pythons «VM» & <söhne>", "the VM's name")
        check_equal(dict(vm.labels), {"test": "client"}, "the VM's labels")
        check_equal(dict(vm.annotations), {"zstack/zoneUuid": "f00"}, "the VM's annotations")
        check_equal(vm.package, "small", "the VM's package")
        check_equal(vm.image_id, self.image_id, "the VM's image")
        check_equal(vm.hardware.vcpus, 1, "the VM's vCPUs")
        check_equal(vm.hardware.memory_bytes, 64 * MIB, "the VM's memory")
        check_equal(list(vm.user_tags), ["client"], "the VM's user tags")
        check_equal(len(vm.volumes), 1, "the number of volumes")
        check_equal(vm.volumes[0].id, vm.root_volume_id, "the root volume's id")
        check_equal(len(vm.nics), 1, "the number of NICs")
        check_equal(vm.nics[0].WhichOneof("attachment"), "user", "the NIC's attachment")
        check_equal(list(vm.nics[0].ip_addresses), ["192.0.2.7"], "the NIC's addresses")
        check_equal(dict(vm.nics[0].metadata), {"zstack/gateway": "192.0.2.1"},
                    "the NIC's metadata")
        listed = self.client.vms.ListVms(self.pb.ListVmsRequest(labels={"test": "client"}),
                                         timeout=DEADLINE)
        check(self.id in [found.id for found in listed.vms], "ListVms does not list the VM")
        self.root = vm.root_volume_id
        self.mac = vm.nics[0].mac
        say("GetVm, ListVms", f"RUNNING, generation {vm.generation}, mac {self.mac}")

    def pause(self):
        """Pauses the VM."""
        self.do(self.client.vms.PauseVm, self.pb.PauseVmRequest(vm_id=self.id),
                "PAUSE_VM", "PAUSED")
        say("PauseVm", "PAUSED")

    def start_is_refused(self):
        """Tries to start a VM that is paused; the refusal says what to do."""
        info = refused(grpc.StatusCode.FAILED_PRECONDITION, "WRONG_STATE",
                       self.client.vms.StartVm, self.pb.StartVmRequest(vm_id=self.id))
        check_equal(info.metadata["state"], "PAUSED", "the state that WRONG_STATE names")
        check_equal(info.metadata["instead"], "ResumeVm", "the call that WRONG_STATE names")
        self.expect_state("PAUSED")
        say("StartVm while PAUSED is refused", f"{info.reason} {dict(info.metadata)}")

    def stale_is_refused(self):
        """Resumes with a generation that is not the VM's."""
        info = refused(grpc.StatusCode.ABORTED, "STALE_GENERATION", self.client.vms.ResumeVm,
                       self.pb.ResumeVmRequest(vm_id=self.id, expected_generation=999))
        self.expect_state("PAUSED")
        say("ResumeVm with a stale generation is refused", f"{info.reason} {dict(info.metadata)}")

    def malformed_is_refused(self):
        """Names a VM by something that is no UUID; the refusal names the field."""
        try:
            self.client.vms.GetVm(self.pb.GetVmRequest(vm_id="no-uuid"), timeout=DEADLINE)
        except grpc.RpcError as error:
            check_equal(error.code(), grpc.StatusCode.INVALID_ARGUMENT, "the code")
            fields = []
            for detail in rpc_status.from_call(error).details:
                bad = error_details_pb2.BadRequest()
                if detail.Unpack(bad):
                    fields += [violation.field for violation in bad.field_violations]
            check_equal(fields, ["vm_id"], "the fields of BadRequest")
            say("GetVm with a malformed id is refused", f"BadRequest names {fields[0]}")
            return
        raise Failure("GetVm took a malformed id")

    def resume(self):
        """Lets the VM go on."""
        self.do(self.client.vms.ResumeVm, self.pb.ResumeVmRequest(vm_id=self.id),
                "RESUME_VM", "RUNNING")
        say("ResumeVm", "RUNNING")

    def stop(self):
        """Cuts the VM's power."""
        ended = self.do(self.client.vms.StopVm,
                        self.pb.StopVmRequest(vm_id=self.id, stop_policy=self.force()),
                        "STOP_VM", "STOPPED")
        check(ended.power_outcome.forced, "the forced stop was not forced")
        check_equal(self.client.pb.PowerMethod.Name(ended.power_outcome.method),
                    "POWER_METHOD_FORCE", "the method of the stop")
        say("StopVm by force", "STOPPED")

    def delete(self):
        """Deletes the VM; it stays, with the time of its expunging."""
        self.do(self.client.vms.DeleteVm, self.pb.DeleteVmRequest(vm_id=self.id),
                "DELETE_VM", "DELETED")
        vm = self.read()
        check(vm.HasField("delete_time"), "the deleted VM has no delete_time")
        check(vm.expunge_time.ToSeconds() > vm.delete_time.ToSeconds(),
              "the deleted VM would be expunged at once")
        say("DeleteVm", f"DELETED, to be expunged at {vm.expunge_time.ToJsonString()}")

    def recover(self):
        """Brings the VM back with everything that it had."""
        self.do(self.client.vms.RecoverVm, self.pb.RecoverVmRequest(vm_id=self.id),
                "RECOVER_VM", "STOPPED")
        vm = self.read()
        check(not vm.HasField("expunge_time"), "the recovered VM still has an expunge_time")
        check_equal(vm.root_volume_id, self.root, "the recovered VM's root volume")
        check_equal([nic.mac for nic in vm.nics], [self.mac], "the recovered VM's NICs")
        say("RecoverVm", "STOPPED, with its root volume and its NIC")

    def expunge(self):
        """Removes the VM for good."""
        request = self.pb.ExpungeVmRequest(vm_id=self.id)
        self.client.finish(self.client.vms.ExpungeVm(request, timeout=DEADLINE), "EXPUNGE_VM")
        info = refused(grpc.StatusCode.NOT_FOUND, "VM_NOT_FOUND", self.client.vms.GetVm,
                       self.pb.GetVmRequest(vm_id=self.id))
        from kvmlet.v1 import volume_pb2
        refused(grpc.StatusCode.NOT_FOUND, "VOLUME_NOT_FOUND", self.client.volumes.GetVolume,
                volume_pb2.GetVolumeRequest(volume_id=self.root))
        say("ExpungeVm", f"{info.reason}, and its root volume is gone")

    def history(self):
        """Lists the VM's operations, newest first, also after its end."""
        request = self.client.pb.ListOperationsRequest(vm_id=self.id)
        listed = self.client.operations.ListOperations(request, timeout=DEADLINE).operations
        kinds = [self.client.pb.OperationType.Name(operation.type)[len("OPERATION_TYPE_"):]
                 for operation in listed]
        wanted = ["EXPUNGE_VM", "DELETE_VM", "RECOVER_VM", "DELETE_VM", "STOP_VM",
                  "RESUME_VM", "PAUSE_VM", "CREATE_VM"]
        check_equal(kinds, wanted, "the VM's operations")
        say("ListOperations", f"{len(kinds)} operations, newest first, none for the refusals")

    def run(self):
        """All of it, in order."""
        self.create()
        self.get()
        self.pause()
        self.start_is_refused()
        self.stale_is_refused()
        self.malformed_is_refused()
        self.resume()
        self.stop()
        self.delete()
        self.recover()
        self.delete()
        self.expunge()
        self.history()


def delete_image(client, image_id):
    """Deletes the image, which no volume uses any more."""
    from kvmlet.v1 import image_service_pb2
    request = image_service_pb2.DeleteImageRequest(image_id=image_id)
    client.finish(client.images.DeleteImage(request, timeout=DEADLINE), "DELETE_IMAGE")
    refused(grpc.StatusCode.NOT_FOUND, "IMAGE_NOT_FOUND", client.images.GetImage,
            image_service_pb2.GetImageRequest(image_id=image_id))
    say("DeleteImage", "gone")


def main():
    """Parses the arguments and runs every step; returns the exit code."""
    parser = argparse.ArgumentParser(
        description="Runs one VM's life over gRPC against a simulated kvmlet.")
    parser.add_argument("target", help="where it listens: unix:/path or 127.0.0.1:port")
    parser.add_argument("image", help="absolute path of a qcow2 image it may import")
    parser.add_argument("--ready-within", type=float, default=DEADLINE, metavar="SECONDS",
                        help="how long to wait for the connection (default: %(default)s)")
    arguments = parser.parse_args()

    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="kvmlet-stubs-"))
        try:
            say("stubs", f"generated from {len(generate(directory))} protos")
            # A proxy in the environment is for the outside world, not for a host's agent.
            # The authority of a Unix socket would be its escaped path, which HTTP/2
            # servers refuse.
            options = [("grpc.enable_http_proxy", 0)]
            if arguments.target.startswith("unix:"):
                options.append(("grpc.default_authority", "localhost"))
            channel = stack.enter_context(grpc.insecure_channel(arguments.target, options))
            grpc.channel_ready_future(channel).result(timeout=arguments.ready_within)
            client = Client(channel)
            health(client)
            reflection(client, "v1")
            reflection(client, "v1alpha")
            node(client)
            image_id = import_image(client, arguments.image)
            Life(client, image_id).run()
            delete_image(client, image_id)
        except Failure as failure:
            print(f"FAILED  {failure}", file=sys.stderr)
            return 1
        except grpc.FutureTimeoutError:
            print(f"FAILED  no connection to {arguments.target} within "
                  f"{arguments.ready_within} s", file=sys.stderr)
            return 1
        except grpc.RpcError as error:
            print(f"FAILED  {error.code().name}: {error.details()}", file=sys.stderr)
            return 1
    print("all as the contract says")
    return 0


if __name__ == "__main__":
    sys.exit(main())
