"""A SuperLink without a process: answers of nodes are kept as Flower keeps them, and pulled as Flower pulls them."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

pytest.importorskip("flwr", reason="hetfl.flower needs Flower: pip install 'hetfl[flower]'")

from flwr.app import Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ObjectTree,
    PullObjectRequest,
    PullObjectResponse,
)
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PullAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree

Contents = dict[str, bytes]
"""The objects of a message as they travel, by id."""


@dataclass
class Stored:
    """An answer as the SuperLink keeps it.

    Attributes:
        message: the answer without its content.
        tree: the ids of its objects.
        contents: the objects.
    """

    message: ProtoMessage
    tree: ObjectTree
    contents: Contents


def stored_answer(records: RecordDict, message: Message) -> Stored:
    """Return an answer to a message as the SuperLink keeps it."""
    answer = Message(records, reply_to=message)
    contents = {key: part.deflate() for key, part in get_all_nested_objects(answer).items()}
    answer.metadata.__dict__["_message_id"] = answer.object_id
    return Stored(message_to_proto(remove_content_from_message(answer)), get_object_tree(answer), contents)


class Store:
    """In the place of Flower's client of the SuperLink: it hands out what nodes have answered, object by object."""

    def __init__(self) -> None:
        self.answers: dict[str, Stored] = {}
        self.pulled: dict[str, Stored] = {}

    def PullMessages(self, request: PullAppMessagesRequest) -> PullAppMessagesResponse:
        found = [self.answers.pop(id) for id in request.message_ids if id in self.answers]
        self.pulled |= {stored.message.metadata.message_id: stored for stored in found}
        return PullAppMessagesResponse(
            messages_list=[stored.message for stored in found], message_object_trees=[stored.tree for stored in found]
        )

    def PullObject(self, request: PullObjectRequest) -> PullObjectResponse:
        contents = (stored.contents for stored in self.pulled.values())
        content = next(each[request.object_id] for each in contents if request.object_id in each)
        return PullObjectResponse(object_found=True, object_available=True, object_content=content)

    def ConfirmMessageReceived(self, request: ConfirmMessageReceivedRequest) -> None:
        del self.pulled[request.message_object_id]
