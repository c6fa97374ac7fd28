//! One program, compiled twice: with `use lapin as amqp` and with `use amqp_compat::client as amqp`. Each promise of it runs with
//! lapin on a real RabbitMQ, and with the client on RabbitMQ, over the RabbitMQ backend in this process, and on JetStream.

mod jetstream;
mod places;

/// The program as it is before the move.
mod before {
    use lapin as amqp;

    include!("promises.rs");
}

/// The same program after it.
mod after {
    use amqp_compat::client as amqp;

    include!("promises.rs");
}

macro_rules! promises {
    ($($promise:ident)*) => {
        mod lapin_on_rabbitmq {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $promise() {
                let place = crate::places::lapin_on_rabbitmq();
                crate::before::$promise(&place).await;
            })*
        }

        mod client_on_rabbitmq {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $promise() {
                let place = crate::places::client_on_rabbitmq();
                crate::after::$promise(&place).await;
            })*
        }

        mod client_over_the_rabbitmq_backend {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $promise() {
                let place = crate::places::client_over_the_rabbitmq_backend();
                crate::after::$promise(&place).await;
            })*
        }

        mod client_on_jetstream {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $promise() {
                let (_server, place) = crate::places::client_on_jetstream();
                crate::after::$promise(&place).await;
            })*
        }
    };
}

promises! {
    what_is_declared_is_there_until_it_is_deleted
    bindings_route_until_they_are_taken_off
    publishes_are_confirmed
    a_mandatory_message_without_a_route_comes_back_with_its_confirm
    a_consumer_streams_messages_as_they_were_published
    a_large_message_arrives_whole
    settled_messages_are_gone_and_requeued_ones_say_so
    one_ack_settles_all_before_it
    a_get_takes_one_message
    a_prefetch_bounds_what_is_unacknowledged
    what_needs_no_acknowledgement_is_gone_when_delivered
    a_purge_says_how_many_went
    a_cancelled_consumer_ends_its_stream
    a_dropped_consumer_is_cancelled_and_a_dropped_delivery_is_not_settled
    a_deleted_queue_ends_the_streams_of_its_consumers
    a_delegate_is_given_each_message
    a_transaction_counts_when_it_is_committed
    a_recover_delivers_again
    a_missing_queue_closes_the_channel_with_404
    a_contradiction_closes_the_channel_with_406
    an_exclusive_queue_is_closed_to_others_with_405
    an_unknown_delivery_tag_closes_the_channel
    a_publish_to_nowhere_closes_the_channel_and_fails_its_confirm
    an_unknown_exchange_type_closes_the_connection
    a_closed_connection_gives_back_what_it_held
}
